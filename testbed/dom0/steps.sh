# The step framework: runs one check at a time under a time limit and reports it, line by line, on the second serial port.
# shellcheck shell=sh

results=/run/testbed
failures=0

# step LIMIT_S TITLE FUNCTION [ARGUMENT]...: the check passes if FUNCTION succeeds within LIMIT_S seconds.
# Its last line starting with "note: " is shown in the report; the end of its output is shown when it fails.
# A check that does not end is the last one: with a store that does not answer, every later one would hang too.
step() {
    limit_s=$1 title=$2
    shift 2
    report "step|$title"
    start_cs=$(uptime_cs)
    (set -eu; "$@") >"$results/output" 2>&1 </dev/null &
    body=$!
    (sleep "$limit_s" && kill -KILL "$body") >/dev/null 2>&1 &
    watchdog=$!
    wait "$body"
    status=$?
    kill "$watchdog" 2>/dev/null
    taken_cs=$(($(uptime_cs) - start_cs))
    case $status in
    0) report "ok|$taken_cs|$(sed -n 's/^note: //p' "$results/output" | tail -n 1)" ;;
    137) fail "no end after $limit_s s" && finish ;;
    *) fail "" ;;
    esac
    return "$status"
}

fail() {
    failures=$((failures + 1))
    report "failed|$taken_cs|$1"
    tail -n 20 "$results/output" | sed 's/^/output|/' >/dev/ttyS1
}

# finish: the report is complete; the hypervisor's serial line gets the domains' console logs, for the reader of the log.
finish() {
    for log in /var/log/xen/*.log; do
        [ ! -s "$log" ] || { echo "==> $log"; cat "$log"; }
    done >/dev/hvc0
    report "end|$failures"
    [ "$failures" = 0 ]
    exit
}

report() { echo "$*" >/dev/ttyS1; }

# Hundredths of a second since dom0 started; /proc/uptime always has two decimals.
uptime_cs() {
    read -r uptime _ </proc/uptime
    echo "${uptime%.*}${uptime#*.}"
}

# expect WHAT WANTED GOT
expect() {
    [ "$2" = "$3" ] || { echo "$1: expected '$2', got '$3'"; return 1; }
}

# refuse WORDS COMMAND...: the command must fail, and its error must contain WORDS.
refuse() {
    words=$1
    shift
    if "$@" >"$results/refused" 2>&1; then
        echo "must fail but does not: $*"
        return 1
    fi
    grep -qF "$words" "$results/refused" || { echo "wanted the error '$words' from: $*"; cat "$results/refused"; return 1; }
}

# absent PATH: the store has no such node.
absent() {
    ! xenstore-exists "$1" || { echo "must not exist: $1"; return 1; }
}

# eventually LIMIT_S COMMAND...: waits until the command succeeds.
eventually() {
    deadline_cs=$(($(uptime_cs) + $1 * 100))
    shift
    until "$@"; do
        [ "$(uptime_cs)" -lt "$deadline_cs" ] || { echo "still not true: $*"; return 1; }
        sleep 0.1
    done
}

remember() { echo "$2" >"$results/$1"; }
recall() { cat "$results/$1"; }

# watch NAME PATH...: starts xenstore-watch; returns when each path's first event, which only says "registered", is there.
watch() {
    name=$1
    shift
    xenstore-watch "$@" >"$results/$name.events" 2>&1 &
    remember "$name.watcher" $!
    eventually 5 saw "$name" $#
}

# saw NAME COUNT: the watch has delivered at least COUNT events.
saw() { [ "$(wc -l <"$results/$1.events")" -ge "$2" ]; }

# unwatch NAME: stops the watch and prints its events, the first one (registration) left out.
unwatch() {
    kill "$(recall "$1.watcher")"
    sed 1d "$results/$1.events"
}
