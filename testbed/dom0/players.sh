# Steps that play the transcripts: this dom0 is domain 0 of the texts, and two guests are the others.
# shellcheck shell=sh disable=SC2317 # steps are called by name

transcript_steps() {
    step 60 "xl create makes two guests for the transcripts" create_players || finish
    step 60 "both are ready" players_ready || finish
    if [ "$(cat /testbed/store)" = daemon ]; then
        step 120 "transcripts, from dom0 over the socket and from guests: all differences are listed" play_transcripts /var/run/xenstored/socket
    else
        step 120 "transcripts, from dom0 and from guests" play_transcripts device
    fi
    step 30 "both are destroyed, and nothing is left of them" destroy_players
}

create_players() {
    for player in player-1 player-2; do
        xl create /testbed/guest.cfg "name=\"$player\"" 'disk=[]' 'cmdline="console=hvc0 quiet mitigations=off transcripts"'
        remember "$player" "$(xl domid "$player")"
    done
    echo "note: domains $(recall player-1) and $(recall player-2)"
}

# The transcripts remove the guests' homes: what is needed of them is read before.
players_ready() {
    for player in player-1 player-2; do
        eventually 25 grep "guest: plays" "/var/log/xen/guest-$player.log"
        domid=$(recall "$player")
        home=/local/domain/$domid
        terminal=$(xenstore-read "$home/console/tty")
        stty -F "$terminal" raw -echo
        remember "$player.part" "$domid:$(xenstore-read "$home/store/port"):$terminal"
        remember "$player.vm" "$(xenstore-read "$home/vm")"
    done
}

# play_transcripts WAY: the whole report is in the log, its end in the step's output.
play_transcripts() {
    log=/var/log/xen/transcripts-$(basename "$1").log
    store=$(recall store)
    [ "$(cat /testbed/store)" = domain ] || store=xenstored
    status=0
    TRANSCRIPTS=/testbed/transcripts /testbed/in-xen play "$1" "$store" "$(recall player-1.part)" "$(recall player-2.part)" \
        >"$log" 2>&1 || status=$?
    tail -n 20 "$log"
    return "$status"
}

# xl finds in a guest's home what else it has to remove.
destroy_players() {
    for player in player-1 player-2; do
        domid=$(recall "$player")
        xl destroy "$domid"
        xenstore-rm "$(recall "$player.vm")"
        eventually 10 forgotten "$domid"
        absent "/local/domain/$domid"
        absent "/libxl/$domid"
        rm "/var/log/xen/guest-$player.log"
    done
}

# A domain that a mapped page keeps alive is listed as "(null)".
forgotten() {
    domains=$(xl list)
    ! echo "$domains" | awk -v domid="$1" '$2 == domid { found = 1 } END { exit !found }'
}
