# The hostile scenario: tiny guests that break every rule of the ring, one after another and all at once, while dom0's own tools work
# and an honest guest measures how long its requests take.
# shellcheck disable=SC2317 # steps are called by name

# shellcheck source=testbed/dom0/steps.sh
. /testbed/steps.sh
# shellcheck source=testbed/dom0/start.sh
. /testbed/start.sh
# shellcheck source=testbed/dom0/domains.sh
. /testbed/domains.sh

main() {
    report "up"
    step 40 "init-xenstore-domain starts the store's domain" start_store || finish
    step 20 "xen-init-dom0 and xenconsoled start" start_services || finish
    step 40 "an honest tiny guest is served" start_honest || finish
    step 40 "a first guest comes and goes; what there is then is counted" first_guest || finish

    plays 5 "ring indices that cannot be" bad-indices 1 ": impossible ring indices"
    plays 4 "lengths that cannot be" bad-lengths 1 ": request too long"
    plays 0 "half a header, then silence" half-header
    plays 0 "half a message, then it crashes" half-message-then-crash
    plays 0 "an open transaction, watches, then it crashes" open-transaction-then-crash
    plays 0 "asks for large answers and never reads" never-reads
    plays 0 "as many requests as it can" floods-requests
    plays 0 "as many watches as it can" floods-watches
    plays 0 "as many transactions as it can" floods-transactions
    plays 0 "as many nodes as it can" floods-nodes
    plays 0 "as many events as it can" floods-events
    plays 1 "asks for a fresh start all the time" floods-reconnects
    plays 1 "scribbles over its ring while it is read" scribbles
    plays 1 "ends its ring's grant" ends-its-grant
    plays 1 "moves its ring's grant to another page" moves-its-grant
    plays 0 "gives the page of its ring back to Xen" gives-up-its-page
    plays 0 "closes its event channel" closes-its-port
    plays 0 "sends no event for what it asks" never-notifies 1 " is lazy: it sent no event"
    plays 0 "sends an event for every eighth request" notifies-sometimes 1 " is lazy: it sent no event"

    step 120 "eight at once beside the honest one, destroyed in the middle of it" all_at_once
    step 120 "four that want more memory than there is: dom0 does everything, guests come and go" memory_is_short
    step 20 "nodes, watches, connections, ports and grants are as many as before" same_count
    step 20 "the honest guest is let go; only the store is left" end_of_honest
    finish
}

start_honest() {
    tiny honest honest
    xl unpause honest
    recall honest >"$results/staying"
    goes_first 0
    goes_first "$(recall store)"
    goes_first "$(recall honest)"
    eventually 30 has_said honest "requests, p50"
    echo "note: $(honest_figures 0)"
}

# There is one processor. Without this the steps would show how Xen shares it among all who want it, not how the store shares itself.
goes_first() { xl sched-credit2 -d "$1" -w 8192; }

# honest_figures N: of the lines of figures after the first N, each about 200 requests, the median and the worst of each kind.
honest_figures() {
    tr -d '\r' <"$console-honest.log" | sed -n 's/^.*honest: 200 requests, p50 \([0-9]*\) us, p99 \([0-9]*\) us, max \([0-9]*\) us$/\1 \2 \3/p' |
        tail -n "+$(($1 + 1))" | sort -n | awk '
            { p50[NR] = $1; if ($2 > p99) p99 = $2; if ($3 > max) max = $3 }
            END { printf "%d requests, p50 %d us, worst p99 %d us, max %d us", NR * 200, p50[int((NR + 1) / 2)], p99, max }'
}

first_guest() {
    xenstore-write /testbed/key 0
    tiny first quiet
    xl unpause first
    eventually 20 xenstore-exists "/local/domain/$(recall first)/data/hello"
    first_count
}

# plays BACK TITLE ROLE [COUNT WORDS]: one guest, one role. It must come back BACK times from what it did, and the store's log must
# have WORDS about it COUNT times.
plays() {
    back=$1 title=$2 role=$3
    shift 3
    step 60 "$title" play_alone "$role" "$back" "$@"
}

play_alone() {
    role=$1 back=$2
    shift 2
    figures_before=$(said honest "requests, p50")
    spell=""
    case $role in never-notifies | notifies-sometimes) spell="spell-ms=6000" ;; esac
    tiny "$role" "$role" "$spell"
    domid=$(recall "$role")
    watch "$role" /testbed/key
    xl unpause "$role"
    rounds=0 slowest_cs=0
    until is_over "$role"; do
        dom0_works "$role"
    done
    dom0_works "$role"
    unwatch "$role" >/dev/null
    [ "$role" != never-reads ] || store_sleeps
    expect "ways back" "$back" "$(said "$role" "back true")"
    [ $# = 0 ] || expect "lines with '$2'" "$1" "$(said Xenstore "domain $domid$2")"
    about=$(said Xenstore "domain $domid:")
    [ "$about" -le 8 ] || { echo "$about lines about one guest"; return 1; }
    domain_gone "$domid" || xl destroy "$domid"
    nothing_left "$role"
    eventually 10 honest_goes_on "$figures_before"
    last_words=$(tr -d '\r' <"$console-$role.log" | sed -n 's/^\[[^]]*\] debug: //p' | grep -v -e ": begins" -e ": done" | tail -n 1)
    echo "note: ${last_words:+$last_words; }dom0 worked $rounds times, slowest $((slowest_cs * 10)) ms; honest: $(honest_figures "$figures_before")"
}

# It said so, or it is no more.
is_over() { has_said "$1" "$1: done" || domain_gone "$(recall "$1")"; }

# One round of what dom0 does all day: every tool must work, and the watch must fire.
dom0_works() {
    rounds=$((rounds + 1))
    begun_cs=$(uptime_cs)
    xenstore-write /testbed/key "$rounds"
    expect "value" "$rounds" "$(xenstore-read /testbed/key)"
    xenstore-write "/testbed/$1/a" 1 "/testbed/$1/b" 2
    xenstore-rm "/testbed/$1"
    xl list | grep -q "^honest "
    eventually 5 saw "$1" $((rounds + 1))
    took_cs=$(($(uptime_cs) - begun_cs))
    [ "$took_cs" -le "$slowest_cs" ] || slowest_cs=$took_cs
}

honest_goes_on() { [ "$(said honest "requests, p50")" -gt "$1" ]; }

readonly crowd="floods-requests floods-watches floods-transactions floods-nodes floods-events floods-reconnects scribbles never-notifies"

all_at_once() {
    figures_before=$(said honest "requests, p50")
    for role in $crowd; do
        tiny "$role" "$role" "spell-ms=3600000 wait-for=/testbed/start"
        xl unpause "$role"
    done
    watch crowd /testbed/key
    xenstore-write /testbed/start now
    xenstore-chmod /testbed/start r0
    rounds=0 slowest_cs=0
    while [ "$rounds" -lt 5 ]; do
        dom0_works crowd
    done
    unwatch crowd >/dev/null
    xenstore-rm /testbed/start
    eventually 20 honest_goes_on "$figures_before"
    echo "note: dom0 worked $rounds times, slowest $((slowest_cs * 10)) ms; honest: $(honest_figures "$figures_before")"
    for role in $crowd; do
        eventually 5 has_said "$role" "$role: begins"
        xl destroy "$role"
    done
    for role in $crowd; do
        nothing_left "$role"
    done
}

# The store's domain has 8 MiB. Whoever is refused memory is counted, and all of it is there again afterwards.
memory_is_short() {
    figures_before=$(said honest "requests, p50")
    for n in 1 2 3 4; do
        tiny "fills$n" fills-memory "spell-ms=3600000 wait-for=/testbed/start"
        xl unpause "fills$n"
    done
    watch short /testbed/key
    xenstore-write /testbed/start now
    xenstore-chmod /testbed/start r0
    eventually 60 has_said Xenstore "memory: scarce"
    rounds=0 slowest_cs=0
    while [ "$rounds" -lt 5 ]; do
        dom0_works short
    done
    unwatch short >/dev/null
    tiny late quiet
    xl unpause late
    eventually 20 has_said late "hello"
    xl destroy late
    eventually 10 domain_gone "$(recall late)"
    absent "/local/domain/$(recall late)"
    xenstore-control counters >"$results/counters"
    grep "^refused-store-memory: " "$results/counters"
    grep "^ended-open-transaction: " "$results/counters"
    for n in 1 2 3 4; do
        xl destroy "fills$n"
    done
    for n in 1 2 3 4; do
        nothing_left "fills$n"
    done
    xenstore-rm /testbed/start
    eventually 20 honest_goes_on "$figures_before"
    echo "note: dom0 worked $rounds times, slowest $((slowest_cs * 10)) ms; honest: $(honest_figures "$figures_before")"
}

# What a guest has left in its ring must not keep the store awake: the honest one's requests need less than half of its time.
store_sleeps() {
    before_s=$(store_s)
    sleep 4
    after_s=$(store_s)
    awk "BEGIN { exit !($after_s - $before_s <= 2) }" || { echo "the store used ${before_s} s, then ${after_s} s"; return 1; }
}

# Processor seconds of the store's domain.
store_s() { xl list | awk '$1 == "Xenstore" { print $6 }'; }

end_of_honest() {
    expect "bad answers" 0 "$(said honest "no good answer")"
    xl shutdown -w honest
    : >"$results/staying"
    nothing_left honest
    xenstore-rm /testbed
    only_known_domains
}

main
