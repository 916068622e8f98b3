# The scenario of policies and storages: an ordinary guest's whole life under `policy=legacy,protocol`, refused nothing; then one that writes
# what is not its part of a device. A journal is kept of all that, which gives the same nodes elsewhere; then nodes are kept otherwise.
# shellcheck disable=SC2317 # steps are called by name

# shellcheck source=testbed/dom0/steps.sh
. /testbed/steps.sh
# shellcheck source=testbed/dom0/start.sh
. /testbed/start.sh
# shellcheck source=testbed/dom0/domains.sh
. /testbed/domains.sh

readonly disk=51712 second_disk=51728

main() {
    report "up"
    step 40 "init-xenstore-domain starts the store's domain" start_store || finish
    step 20 "xen-init-dom0 and xenconsoled start" start_services || finish
    step 10 "the command line has set a policy and a layer" as_started
    step 10 "xenstore-control refuses what is none, and nothing changes" bad_words
    step 90 "xl create: a guest connects, and reads its disk" create
    step 60 "xl block-attach: it gets another disk" attach
    step 60 "xl block-detach: it gives it back" detach
    step 120 "xl save and xl restore: it goes on as another domain" save_and_restore
    step 20 "nothing of this was refused" refused_nothing
    step 30 "xl destroy; nothing is left" destroy guest
    step 90 "a guest that writes what is not its part is refused, counted and told of" break_protocol
    step 30 "xl destroy; nothing is left" destroy breaker
    step 10 "a layer delays dom0's own reads, and is taken away" delay_dom0
    step 60 "the journal of all this, done again on another store, gives the same nodes" replay
    step 40 "a live update to store=flat keeps every node" keep_flat
    step 40 "and so does one to store=journal, which begins anew" keep_journal
    finish
}

as_started() {
    expect "policies" "legacy protocol refused 0" "$(xenstore-control policy list | xargs)"
    xenstore-control layer list | grep "^0 stats$"
    expect "kept" "legacy,protocol" "$(xenstore-read /tool/xenstored/policy)"
    expect "kept" "stats" "$(xenstore-read /tool/xenstored/layer)"
}

bad_words() {
    ! xenstore-control policy set legacy,protokoll || { echo "a policy that is none was taken"; return 1; }
    ! xenstore-control layer add delya:5ms || { echo "a layer that is none was taken"; return 1; }
    as_started
}

# boot NAME WORDS: a Linux guest with WORDS on its command line, up to its disk.
boot() {
    xl create -p /testbed/guest.cfg "name=\"$1\"" memory=96 "cmdline=\"console=hvc0 quiet mitigations=off $2\""
    remember "$1" "$(xl domid "$1")"
    xl unpause "$1"
    eventually 80 has_said "$1" "guest: ready"
    expect "state" "4 4" "$(states "$1" "$disk")"
}

# states NAME DEVICE: of its end and of dom0's.
states() {
    domid=$(recall "$1")
    xenstore-read "/local/domain/$domid/device/vbd/$2/state" "/local/domain/0/backend/vbd/$domid/$2/state" | xargs
}

create() {
    boot guest ""
    expect "first line of the disk" 1 "$(said guest "guest: disk testbed disk")"
}

attach() {
    truncate -s 1M /run/testbed/second
    losetup /dev/loop1 /run/testbed/second
    xl block-attach guest phy:/dev/loop1,xvdb,r
    eventually 50 is_connected guest "$second_disk"
}

is_connected() { [ "$(states "$1" "$2")" = "4 4" ]; }

detach() {
    xl block-detach guest xvdb
    domid=$(recall guest)
    eventually 20 gone "/local/domain/$domid/device/vbd/$second_disk"
    eventually 20 gone "/local/domain/0/backend/vbd/$domid/$second_disk"
}

gone() { ! xenstore-exists "$1"; }

save_and_restore() {
    old=$(recall guest)
    xl save guest /tmp/saved
    eventually 10 domain_gone "$old"
    xl restore /tmp/saved
    rm /tmp/saved
    remember guest "$(xl domid guest)"
    absent "/local/domain/$old"
    eventually 60 is_connected guest "$disk"
    beats=$(beats_of guest)
    eventually 60 beats_more guest "$beats"
    echo "note: domain $old went on as $(recall guest)"
}

beats_of() { xenstore-read "/local/domain/$(recall "$1")/data/alive" 2>/dev/null || echo 0; }
beats_more() { [ "$(beats_of "$1")" -gt "$2" ]; }

refused_nothing() {
    expect "policies" "legacy protocol refused 0" "$(xenstore-control policy list | xargs)"
    expect "lines about refusals" 0 "$(said Xenstore "refused by policy")"
    echo "note: $(xenstore-control layer list | sed -n 's/^  WRITE: \([0-9]* requests\).*/\1 to WRITE, none refused by a policy/p')"
}

destroy() {
    xl destroy "$1"
    nothing_left "$1"
}

break_protocol() {
    boot breaker breaks-protocol
    domid=$(recall breaker)
    eventually 20 has_said breaker "guest: broke"
    for what in "write backend" "write state" "write other" "remove backend"; do
        tr -d '\r' <"$console-breaker.log" | grep "guest: $what: ."
    done
    expect "state" "4 4" "$(states breaker "$disk")"
    expect "backend" "/local/domain/0/backend/vbd/$domid/$disk" "$(xenstore-read "/local/domain/$domid/device/vbd/$disk/backend")"
    xenstore-control policy list | grep "^protocol refused 4$"
    xenstore-control counters "$domid" | grep "^refused-policy: 4$"
    line=$(tr -d '\r' <"$console-Xenstore.log" | sed -n "s/.*\(domain $domid: refused by policy protocol: .*\)/\1/p")
    expect "line in the log" "domain $domid: refused by policy protocol: WRITE /local/domain/$domid/device/vbd/$disk/backend" "$line"
    echo "note: $line"
}

delay_dom0() {
    xenstore-write /testbed/key value
    xenstore-control layer add delay:read=500ms,who=all
    begun_cs=$(uptime_cs)
    xenstore-read /testbed/key
    took_cs=$(($(uptime_cs) - begun_cs))
    [ "$took_cs" -ge 50 ] || { echo "a read took $took_cs hundredths of a second"; return 1; }
    xenstore-control layer remove 1
    xenstore-rm /testbed
    expect "layers" "0 stats" "$(xenstore-control layer list | grep -v '^ ' | xargs)"
    echo "note: a read took $((took_cs * 10)) ms"
}

# Without the store's own counters, which change by themselves.
all_nodes() { xenstore-ls -f -p | grep -v "^/tool/xenstored/counters"; }

# The other store has the same domids, so that owners mean the same; it has nothing else of them.
replay() {
    /testbed/xs journal --store /dev/xen/xenbus >"$results/journal" 2>"$results/position"
    all_nodes >"$results/nodes"
    expect "dropped" "lines dropped: 0" "$(xenstore-control journal | grep dropped)"
    export XENSTORED_PATH="$results/other"
    /testbed/ferrostored --socket "$XENSTORED_PATH" --domains 30 --log error &
    daemon=$!
    eventually 10 test -S "$XENSTORED_PATH"
    xenstore-rm /local
    /testbed/xs replay "$results/journal"
    all_nodes >"$results/replayed"
    kill "$daemon"
    diff "$results/nodes" "$results/replayed"
    echo "note: $(wc -l <"$results/journal") lines, $(wc -l <"$results/nodes") nodes"
}

keep_flat() {
    keep_otherwise flat
    refuse "" xenstore-control journal
}

keep_journal() {
    keep_otherwise journal
    xenstore-control journal | grep "^commits: "
}

# keep_otherwise WORD: the store goes on with store=WORD.
keep_otherwise() {
    all_nodes >"$results/before"
    xenstore-control live-update -c "$(cat /testbed/param) store=$1" /testbed/ferrostore.elf
    all_nodes >"$results/after"
    diff "$results/before" "$results/after"
    expect "check" OK "$(xenstore-control check)"
    echo "note: $(wc -l <"$results/after") nodes"
}

main
