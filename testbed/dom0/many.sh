# The scenario of many guests: as many as there is memory for, Linux and tiny ones, created, rebooted, saved and restored, destroyed and
# created again, also with a domid that another one had. Nothing may be left of them.
# shellcheck disable=SC2317 # steps are called by name

# shellcheck source=testbed/dom0/steps.sh
. /testbed/steps.sh
# shellcheck source=testbed/dom0/start.sh
. /testbed/start.sh
# shellcheck source=testbed/dom0/domains.sh
. /testbed/domains.sh

# Tiny guests at once, if memory allows; fewer than the second number are too few.
readonly tiny_most=20 tiny_least=6
# MiB that Xen must have left for one more tiny guest, its own structures included.
readonly tiny_needs_mb=12
readonly rounds=3

main() {
    report "up"
    step 40 "init-xenstore-domain starts the store's domain" start_store || finish
    step 20 "xen-init-dom0 and xenconsoled start" start_services || finish
    step 60 "a first guest comes and goes; what there is then is counted" first_guest || finish

    step 60 "two Linux guests" create_linux || finish
    step 120 "tiny guests until memory is full" fill_with_tiny || finish
    step 60 "every one of them is served" all_are_served
    step 20 "the store maps one ring and has one event channel for each" one_of_each
    step 120 "xl reboot: a tiny guest becomes another domain" reboot_tiny
    step 120 "xl reboot: so does a Linux guest" reboot_linux
    step 60 "xl save and xl restore: a tiny guest goes on as another domain" save_and_restore tiny1
    step 120 "xl save and xl restore: a Linux guest goes on as another domain" save_and_restore linux1
    step 60 "a checkpoint: a tiny guest goes on as it was" checkpoint
    step 90 "a saved guest is restored with its old domid" same_domid
    step 90 "another guest gets the domid of a dead one, and none of its rights" reused_domid
    step 90 "domids at random" random_domid
    step 120 "all are destroyed" destroy_all
    step 60 "nodes, watches, connections, ports and grants are as many as before" same_count

    for round in $(seq $rounds); do
        step 150 "round $round: created, used and destroyed, all at once" comes_and_goes "$round"
    done
    step 60 "nodes, watches, connections, ports and grants are as many as before" same_count
    step 20 "only the store is left" end_of_many
    finish
}

first_guest() {
    xenstore-write /testbed/key 0
    linux first
    first_count
}

linux() {
    xl create -q /testbed/guest.cfg "name=\"$1\"" memory=96
    remember "$1" "$(xl domid "$1")"
}

create_linux() {
    linux linux1
    linux linux2
    for name in linux1 linux2; do
        eventually 55 has_said "$name" "guest: domid"
    done
}

fill_with_tiny() {
    n=0
    while [ "$n" -lt "$tiny_most" ] && [ "$(free_mb)" -ge "$tiny_needs_mb" ]; do
        n=$((n + 1))
        tiny "tiny$n" quiet
        xl unpause "tiny$n"
    done
    remember tiny.count "$n"
    echo "note: $n of them, $(free_mb) MiB left"
    [ "$n" -ge "$tiny_least" ]
}

all_names() {
    echo linux1 linux2
    seq "$(recall tiny.count)" | sed 's/^/tiny/'
}

all_are_served() {
    for name in $(all_names); do
        eventually 50 greeted "$name"
    done
    echo "note: $(xl list | awk 'NR > 1' | wc -l) domains"
}

# greeted NAME: whoever has this name now has written its node.
greeted() {
    domid=$(xl domid "$1") && xenstore-exists "/local/domain/$domid/data/hello"
}

one_of_each() {
    guests=$(all_names | wc -w)
    before=$(sed -n 's/^event channels of the store: //p' "$results/before")
    expect "event channels" $((before + guests)) "$(lsevtchn "$(recall store)" | wc -l)"
    before=$(sed -n 's/^pages the store has mapped: //p' "$results/before")
    expect "mapped pages" $((before + guests)) "$(mapped_pages)"
}

reboot_tiny() { reboots tiny1 30; }
reboot_linux() { reboots linux2 110; }

# reboots NAME LIMIT_S
reboots() {
    old=$(recall "$1")
    xl reboot "$1"
    eventually "$2" is_another "$1" "$old"
    eventually "$2" greeted "$1"
    domain_gone "$old"
    absent "/local/domain/$old"
    remember "$1" "$(xl domid "$1")"
    echo "note: domain $old became $(recall "$1")"
}

is_another() { now=$(xl domid "$1") && [ "$now" != "$2" ]; }

# save_and_restore NAME
save_and_restore() {
    old=$(recall "$1")
    xl save "$1" /tmp/saved
    eventually 10 domain_gone "$old"
    absent "/local/domain/$old"
    xl restore /tmp/saved
    rm /tmp/saved
    remember "$1" "$(xl domid "$1")"
    is_another "$1" "$old"
    eventually 60 goes_on "$1"
    echo "note: domain $old became $(recall "$1")"
}

# goes_on NAME: it writes in its new home. A tiny guest does so once, a Linux guest all the time.
goes_on() {
    home=/local/domain/$(recall "$1")
    case $1 in
    tiny*) xenstore-exists "$home/data/hello" ;;
    *) xenstore-exists "$home/data/alive" ;;
    esac
}

checkpoint() {
    guest=tiny2
    old=$(recall "$guest")
    said_before=$(said "$guest" "Suspend, told")
    xl save -c "$guest" /tmp/saved
    rm /tmp/saved
    expect "domid" "$old" "$(xl domid "$guest")"
    expect "suspended" $((said_before + 1)) "$(said "$guest" "Suspend, told")"
    eventually 5 has_said "$guest" "not saved after all"
    # It shuts down a second time, which must be told again. The xl that looked after it went away at the first time.
    watch release @releaseDomain
    xl shutdown "$guest"
    eventually 10 has_said "$guest" "PowerOff, told"
    released
    xl destroy "$guest"
    nothing_left_of "$old"
    tiny "$guest" quiet
    xl unpause "$guest"
}

same_domid() {
    guest=tiny3
    old=$(recall "$guest")
    xl save -D "$guest" /tmp/saved
    eventually 10 domain_gone "$old"
    restore_at_once
    expect "domid" "$old" "$(xl domid "$guest")"
    eventually 20 greeted "$guest"
}

# libxl does not use a domid that was used within the last minute. Here it forgets which ones were.
restore_at_once() {
    rm -f /run/xen/domid-history
    xl restore /tmp/saved
    rm /tmp/saved
}

# The saved guest gets another uuid, so that it is another domain to Xen and to the store.
reused_domid() {
    guest=tiny4
    old=$(recall "$guest")
    xenstore-write /testbed/reused/readable secret /testbed/reused/owned theirs
    xenstore-chmod /testbed/reused/readable n0 "r$old"
    xenstore-chmod /testbed/reused/owned "n$old"
    xenstore-ls -p /testbed/reused | grep -F "r$old"
    xl save -D "$guest" /tmp/saved
    eventually 10 domain_gone "$old"
    change_uuid /tmp/saved
    restore_at_once
    expect "domid" "$old" "$(xl domid "$guest")"
    eventually 20 greeted "$guest"
    expect "what is left of it" 'readable = "secret" (n0)' "$(xenstore-ls -p /testbed/reused | sed 's/[ .]* (/ (/')"
    xenstore-rm /testbed/reused
    echo "note: domain $old twice"
}

# The first digits of the uuid in the file's JSON part.
change_uuid() {
    offset=$(head -c 4096 "$1" | tr '\000\n' '..' | awk '{ print index($0, "\"uuid\": \"") }')
    [ "$offset" -gt 0 ]
    printf feedface | dd of="$1" bs=1 seek=$((offset + 8)) conv=notrunc
}

random_domid() {
    echo 'domid_policy = "random"' >/etc/xen/xl.conf
    guest=tiny5
    old=$(recall "$guest")
    xl destroy "$guest"
    nothing_left_of "$old"
    tiny "$guest" quiet
    : >/etc/xen/xl.conf
    xl unpause "$guest"
    eventually 20 greeted "$guest"
    echo "note: domain $(recall "$guest")"
}

destroy_all() {
    for name in $(all_names); do
        recall "$name"
        xl destroy "$name"
    done >"$results/ended"
    while read -r domid; do
        nothing_left_of "$domid"
    done <"$results/ended"
    expect "domains" "$(known_domains)" "$(xenstore-list /local/domain | sort -n | xargs)"
}

nothing_left_of() {
    eventually 10 domain_gone "$1"
    absent "/local/domain/$1"
    absent "/libxl/$1"
}

comes_and_goes() {
    names=$(seq "$tiny_least" | sed 's/^/again/')
    for name in $names; do
        tiny "$name" quiet
    done
    for name in $names; do
        xl unpause "$name"
    done
    for name in $names; do
        eventually 30 greeted "$name"
    done
    for name in $names; do
        xl destroy "$name"
    done
    for name in $names; do
        nothing_left_of "$(recall "$name")"
    done
    expect "domains" "$(known_domains)" "$(xenstore-list /local/domain | sort -n | xargs)"
}

end_of_many() {
    xenstore-rm /testbed
    only_known_domains
}

main
