# The scenario of live update and restart: the store is replaced while it serves, by images like it and by others, well and badly, and
# survives its own crashes. Guests that check every reply and event are served all the time.
# shellcheck disable=SC2317 # steps are called by name

# shellcheck source=testbed/dom0/steps.sh
. /testbed/steps.sh
# shellcheck source=testbed/dom0/start.sh
. /testbed/start.sh
# shellcheck source=testbed/dom0/domains.sh
. /testbed/domains.sh

readonly image=/testbed/ferrostore.elf
readonly other=/testbed/ferrostore-inject.elf
readonly old=/testbed/ferrostore-old-stream.elf
# Guests that check, and updates under their load: as many as the host's word says.
readonly guests=8
rounds=$(cat /testbed/rounds)
# Crashes of both kinds: in a request, which costs its connection or, of the toolstack, gets EIO; and elsewhere. A hang is one, too.
readonly domains=20
readonly crashes="panic ud2 readonly stack memory allocator hang loop loop-hang"

main() {
    report "up"
    step 40 "init-xenstore-domain starts the store's domain" start_store || finish
    step 20 "xen-init-dom0 and xenconsoled start" start_services || finish
    step 60 "xenstore-control live-update replaces it by an image like it" update_to_same || finish

    step 120 "$guests guests check all that they are answered" start_guests || finish
    step 20 "a file that is no image is refused" refused_file
    step 60 "so is a damaged image, and one that is too large" refused_images
    step 40 "an image that meets an exception at its first instruction gives way" gives_way exception "met exception 6"
    step 40 "so does one that panics" gives_way panic "asked for, at entry"
    step 60 "and one that never accepts" gives_way hang "did not accept in time"
    step 40 "one that cannot read the stream" gives_way stream "refused"
    step 40 "and one that has not enough memory for it" gives_way memory "refused"
    step 60 "an update is given up by -a" aborted
    step 150 "an image that reads version 1 only: what it cannot carry is told, and it takes over if forced" to_old_and_back
    start_dom0_load
    step $((60 + rounds * 30)) "$rounds updates in a row under load, to another image and back" many_updates
    step 60 "nothing was lost, doubled or out of order" nothing_wrong
    step 20 "nor was anything of dom0's own load" dom0_load

    step 40 "the other image again, which crashes on demand" update_to "$other"
    for kind in $crashes; do
        step 120 "it crashes ($kind) and goes on" crashed "$kind"
    done
    step 60 "nothing was lost, doubled or out of order" nothing_wrong
    step 40 "an update to the first image, after the crashes" update_to "$image"
    step 90 "all guests are destroyed, and nothing is left of them" end_guests

    step 240 "$domains domains' worth of nodes, 1000 each, in 8 MiB" fill
    step 60 "an update of all that" update_of_all
    step 120 "a crash with all that" crash_of_all
    step 90 "with more than there is room for, an update is refused and nothing changes" update_of_too_much
    finish
}

update_to_same() {
    xenstore-write /testbed/key before
    update_to "$image"
    expect "value" before "$(xenstore-read /testbed/key)"
}

# update_to IMAGE [OPTION]...
update_to() {
    file=$1
    shift
    xenstore-control live-update "$@" "$file"
    echo "note: $(last_pause)"
}

# What the store said last of how long it answered nobody.
last_pause() { tr -d '\r' <"$console-Xenstore.log" | sed -n 's/^.*\] ready; \(.*\)$/\1/p' | tail -n 1; }

start_guests() {
    for n in $(seq "$guests"); do
        tiny "check$n" checks
        xl unpause "check$n"
    done
    for n in $(seq "$guests"); do
        eventually 60 has_checked "check$n"
    done
}

has_checked() { xenstore-read "/local/domain/$(recall "$1")/data/checked" >/dev/null 2>&1; }

rounds_of() { xenstore-read "/local/domain/$(recall "check$1")/data/checked" | sed 's/ .*//'; }

# Every guest makes progress, and has found nothing wrong.
nothing_wrong() {
    total=0
    for n in $(seq "$guests"); do
        remember "rounds$n" "$(rounds_of "$n")"
    done
    for n in $(seq "$guests"); do
        eventually 50 has_gone_on "$n"
        checked=$(xenstore-read "/local/domain/$(recall "check$n")/data/checked")
        expect "check$n" 0 "$(echo "$checked" | sed 's/.*rounds, \(.*\) wrong/\1/')"
        total=$((total + $(recall "rounds$n")))
    done
    expect "check" OK "$(xenstore-control check)"
    echo "note: $total rounds of ten requests and two events"
}

has_gone_on() { [ "$(rounds_of "$1")" -gt "$(recall "rounds$1")" ]; }

# dom0's load beside the guests': two nodes written by one transaction, read back, and heard of, again and again.
start_dom0_load() {
    watch load /testbed/load
    write_and_read >"$results/load" 2>&1 &
}

write_and_read() {
    n=0
    until [ -e "$results/enough" ]; do
        n=$((n + 1))
        xenstore-write /testbed/load/a "a$n" /testbed/load/b "b$n"
        expect "load" "a$n b$n " "$(xenstore-read /testbed/load/a /testbed/load/b | tr '\n' ' ')"
    done
    echo "rounds $n"
}

dom0_load() {
    touch "$results/enough"
    eventually 10 grep -q "^rounds" "$results/load"
    n=$(sed -n 's/^rounds //p' "$results/load")
    expect "load" "rounds $n" "$(cat "$results/load")"
    eventually 10 saw load $((2 * n + 1))
    unwatch load >"$results/heard"
    for _ in $(seq "$n"); do printf '%s\n' /testbed/load/a /testbed/load/b; done | cmp - "$results/heard"
    [ "$n" -gt "$rounds" ]
    echo "note: $n transactions, $((2 * n)) events"
}

refused_file() {
    echo "no image" >/run/testbed/no-image
    refuse "" xenstore-control live-update /run/testbed/no-image
    expect "value" before "$(xenstore-read /testbed/key)"
}

refused_images() {
    cp "$image" /run/testbed/damaged
    printf 'X' | dd of=/run/testbed/damaged bs=1 seek=300000 conv=notrunc 2>/dev/null
    refuse "damaged" xenstore-control live-update /run/testbed/damaged
    cp "$image" /run/testbed/large
    truncate -s 1500K /run/testbed/large
    refuse "Allocation failure" xenstore-control live-update /run/testbed/large
    nothing_wrong
}

# gives_way WORD TEXT: an image of which WORD makes a bad one; the one before goes on, and says TEXT.
gives_way() {
    refuse "$2" xenstore-control live-update -c "$(cat /testbed/param) inject=$1" "$other"
    nothing_wrong
    echo "note: $(last_pause)"
}

# By another process than the one that sends the image.
aborted() {
    xenstore-control live-update "$other" >"$results/aborted" 2>&1 &
    sleep 0.3
    xenstore-control live-update -a >/dev/null 2>&1 || true
    wait $! || true
    nothing_wrong
}

to_old_and_back() {
    xenstore-control live-update -F "$old"
    nothing_wrong_but_transactions
    update_to "$image"
    nothing_wrong_but_transactions
    # From here on the guests count from nothing again.
    end_guests
    start_guests
}

# An old image gives transactions up: EAGAIN is no error of the store's then.
nothing_wrong_but_transactions() {
    for n in $(seq "$guests"); do
        remember "rounds$n" "$(rounds_of "$n")"
    done
    for n in $(seq "$guests"); do
        eventually 50 has_gone_on "$n"
    done
}

many_updates() {
    for round in $(seq "$rounds"); do
        if [ $((round % 2)) = 1 ]; then next=$other; else next=$image; fi
        xenstore-control live-update "$next"
        last_pause >>"$results/pauses"
        expect "value" before "$(xenstore-read /testbed/key)"
    done
    echo "note: $(sed 's/.*over, \([0-9]*\) us.*/\1/' "$results/pauses" | sort -n | awk '{ p[NR] = $1 } END { printf "pause %d to %d us", p[1], p[NR] }')"
}

crashed() {
    not_too_often
    before=$(xenstore-read /tool/xenstored/crash/count 2>/dev/null || echo 0)
    xenstore-control crash "$1" || true
    eventually 30 has_crashed "$before"
    expect "value" before "$(xenstore-read /testbed/key)"
    xl list >/dev/null
    echo "note: $(xenstore-read /tool/xenstored/crash/last | head -c 120)"
}

# A ninth crash within a minute would be the end.
not_too_often() {
    touch "$results/crashes"
    if [ "$(wc -l <"$results/crashes")" -ge 8 ]; then
        eighth=$(tail -n 8 "$results/crashes" | head -n 1)
        while [ $(($(date +%s) - eighth)) -le 61 ]; do sleep 1; done
    fi
    date +%s >>"$results/crashes"
}

has_crashed() { [ "$(xenstore-read /tool/xenstored/crash/count 2>/dev/null || echo 0)" -gt "$1" ]; }

# As many nodes as so many domains may have.
fill() {
    for domain in $(seq "$domains"); do
        seq 1000 | sed "s|.*|/testbed/many/$domain/device/vbd/& value-&|" | xargs -n 400 xenstore-write
    done
    all_there
    echo "note: $(xenstore-control memreport | head -n 1)"
}

all_there() {
    for domain in 1 $domains; do
        expect "nodes" 1000 "$(xenstore-list "/testbed/many/$domain/device/vbd" | wc -l)"
        expect "value" value-777 "$(xenstore-read "/testbed/many/$domain/device/vbd/777")"
    done
    expect "check" OK "$(xenstore-control check)"
}

update_of_all() {
    update_to "$other"
    all_there
}

crash_of_all() {
    crashed panic
    all_there
    echo "note: $(last_pause)"
}

# Values take as much of the room for the state as of the heap.
update_of_too_much() {
    value=$(head -c 2000 /dev/zero | tr '\0' x)
    seq 600 | sed "s|.*|/testbed/much/& $value|" | xargs -n 30 xenstore-write
    refuse "more than there are" xenstore-control live-update "$image"
    all_there
    echo "note: $(cat "$results/refused")"
    xenstore-rm /testbed/much
    update_to "$image"
    all_there
}

end_guests() {
    for n in $(seq "$guests"); do
        xl destroy "check$n"
    done
    for n in $(seq "$guests"); do
        nothing_left "check$n"
    done
}

main
