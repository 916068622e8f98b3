# The scenario of leases: two guests that want one disk for themselves, by the hook for xl's block script in docs/examples. The second is
# refused, and let in when the first is destroyed.
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
    step 10 "the command line has set the policy; the hook is installed" install_hook || finish
    step 40 "xl create: the first guest gets the disk exclusively" first_holds || finish
    step 40 "xl create: the second guest is refused, and told by whom it is held" second_is_refused
    step 20 "dom0 may not overwrite the lease either" no_other_writes
    step 30 "xl destroy: the first guest's lease is released before its end is told" first_ends
    step 40 "xl create: the second guest is let in" second_holds
    step 30 "who waits gets the lease when the second is destroyed" next_in_line
    step 60 "two guests that only read have the disk together; one that writes is refused" readers
    step 20 "nobody is left, and no lease" nothing_held
    finish
}

install_hook() {
    expect "policies" "legacy lease refused 0" "$(xenstore-control policy list | xargs)"
    cp /testbed/block-lease /etc/xen/scripts/block-lease
    remember disk "/lease/disk/$(stat -L -c 'dev-%t-%T' /dev/loop0)"
    echo "note: $(recall disk)"
}

# guest NAME ACCESS: a tiny guest with the disk.
guest() {
    xl create -q -p /testbed/tiny.cfg "name=\"$1\"" 'cmdline="role=quiet"' \
        "disk=[\"format=raw,vdev=xvda,access=$2,script=block-lease,target=/dev/loop0\"]" || return
    remember "$1" "$(xl domid "$1")"
}

holds() { expect "lease of $1" "$2" "$(xenstore-read "$(recall disk)/holder/$(recall "$1")")"; }

holders() { xenstore-list "$(recall disk)/holder" | sort -n | xargs; }

first_holds() {
    guest first w
    holds first exclusive
    echo "note: domain $(recall first)"
}

# refused NAME ACCESS: xl does not start the guest, says why, and leaves nothing.
refused() {
    ! guest "$1" "$2" >"$results/said" 2>&1 || { echo "$1 was let in"; return 1; }
    cat "$results/said"
    grep "the disk is not to be had" "$results/said"
    ! xl domid "$1" || { echo "$1 is there"; return 1; }
    echo "note: $(sed -n 's/^.*\(the disk is not to be had.*\)$/\1/p' "$results/said" | tail -n 1)"
}

second_is_refused() {
    before=$(holders)
    refused second w
    grep -F "domain $(recall first) holds it exclusive" "$results/said"
    expect "holders" "$before" "$(holders)"
}

no_other_writes() {
    refuse "" xenstore-write "$(recall disk)/holder/0" exclusive
    refuse "" xenstore-write "$(recall disk)" shared
    refuse "" xenstore-rm "$(recall disk)"
    xenstore-control policy list | grep -E "^lease refused [1-9]"
}

first_ends() {
    watch ends "$(recall disk)" @releaseDomain
    first=$(recall first)
    xl destroy first
    eventually 10 saw ends 4
    unwatch ends >"$results/ends"
    cat "$results/ends"
    released=$(grep -n "holder/$first$" "$results/ends" | head -n 1 | cut -d : -f 1)
    told=$(grep -n '^@releaseDomain' "$results/ends" | sed -n 2p | cut -d : -f 1)
    [ "${released:?"no event of the lease"}" -lt "${told:?"no event of the end"}" ]
    expect "holders" "" "$(holders)"
}

second_holds() {
    guest second w
    holds second exclusive
}

next_in_line() {
    xenstore-write "$(recall disk)/wait/0" exclusive
    refuse "" xenstore-read "$(recall disk)/holder/0"
    xl destroy second
    eventually 10 xenstore-exists "$(recall disk)/holder/0"
    xenstore-rm "$(recall disk)/holder/0"
}

readers() {
    guest one r
    guest two r
    holds one read-only
    holds two read-only
    refused writer w
    xl destroy one
    xl destroy two
}

nothing_held() {
    eventually 10 only_known_domains
    expect "holders" "" "$(holders)"
    xenstore-rm "$(recall disk)"
    expect "check" OK "$(xenstore-control check)"
}

main
