# What the scenarios ask of domains: whether they are there, what they and the store say, whether anything is left of them.
# shellcheck shell=sh disable=SC2154 # needs steps.sh

# Where xenconsoled writes what domains say: $console-NAME.log.
console=/var/log/xen/guest

# said NAME WORDS: how many lines with these words a domain wrote on its console.
said() { tr -d '\r' <"$console-$1.log" | grep -cF -- "$2" || true; }

# has_said NAME WORDS
has_said() { [ -e "$console-$1.log" ] && [ "$(said "$1" "$2")" -gt 0 ]; }

# tiny NAME ROLE [WORD]: xl create makes a tiny guest that will play ROLE once it is unpaused.
tiny() {
    rm -f "$console-$1.log"
    xl create -q -p /testbed/tiny.cfg "name=\"$1\"" "cmdline=\"role=$2 ${3:-}\""
    remember "$1" "$(xl domid "$1")"
}

released() {
    eventually 5 saw release 2
    expect "event" "@releaseDomain" "$(unwatch release | sort -u)"
}

# nothing_left NAME
nothing_left() {
    domid=$(recall "$1")
    eventually 10 domain_gone "$domid"
    absent "/local/domain/$domid"
    absent "/local/domain/0/backend/vbd/$domid"
    absent "/libxl/$domid"
    expect "domains in the store" "$(known_domains)" "$(xenstore-list /local/domain | sort -n | xargs)"
}

# A domain that a mapped page keeps alive is listed as "(null)".
domain_gone() {
    xl list >"$results/domains"
    ! awk -v domid="$1" '$2 == domid { found = 1 } END { exit !found }' "$results/domains"
}

is_crashed() { xl list | awk -v domid="$1" '$2 == domid && $5 ~ /c/ { found = 1 } END { exit !found }'; }

only_known_domains() { [ "$(xl list | awk 'NR > 1 { print $2 }' | sort -n | xargs)" = "$(known_domains)" ]; }

# dom0, the store's, and those that a scenario notes as staying, one a line in "staying".
known_domains() { { printf '%s\n' 0 "$(recall store)"; cat "$results/staying" 2>/dev/null || true; } | sort -nu | xargs; }

# stock: what the store has for all domains, a line each. For comparison, when nothing is under way.
stock() {
    until report_without_counters; do :; done
    cat "$results/memreport"
    expect "check" OK "$(xenstore-control check)"
    echo "event channels of the store: $(lsevtchn "$(recall store)" | wc -l)"
    echo "pages the store has mapped: $(mapped_pages)"
}

# The store's own report, at a moment at which it has no nodes that show its counters: these come when something was refused.
report_without_counters() {
    xenstore-rm /tool/xenstored/counters 2>/dev/null || true
    xenstore-control memreport >"$results/memreport"
    ! xenstore-exists /tool/xenstored/counters
}

# What Xen could give to new domains.
free_mb() { xl info | sed -n 's/^free_memory *: //p'; }

# Xen writes its table of grants to its log: a line for each that is in use, whose second word is the domain that uses it.
mapped_pages() {
    xl dmesg --clear >/dev/null
    xl debug-keys g
    xl dmesg >"$results/grants"
    sed -n 's/^(XEN) //p' "$results/grants" | awk -v store="$(recall store)" '$1 ~ /^\[/ && $2 == store { n++ } END { print n + 0 }'
}

# first_count: what there is when a first guest, which the scenario calls "first", has come and gone: it makes directories that stay.
first_count() {
    xl destroy first
    nothing_left first
    stock >"$results/before"
    remember free_mb "$(free_mb)"
    echo "note: $(paste -s -d, "$results/before" | sed 's/,/, /g'), memory that Xen has left: $(recall free_mb) MiB"
}

# same_count: whether there is as much now. Xen tells whole MiB, so that a page less may look like one; the smallest guest has eight.
same_count() {
    stock >"$results/after"
    diff "$results/before" "$results/after"
    [ "$(free_mb)" -ge $(($(recall free_mb) - 1)) ] || expect "memory that Xen has left" "$(recall free_mb)" "$(free_mb)"
}
