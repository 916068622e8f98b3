# The scenario: Debian's own tools against the store, from dom0 and from guests. The order matters; each step says what it shows.
# shellcheck disable=SC2317 # steps are called by name

# shellcheck source=testbed/dom0/steps.sh
. /testbed/steps.sh
# shellcheck source=testbed/dom0/start.sh
. /testbed/start.sh
# shellcheck source=testbed/dom0/players.sh
. /testbed/players.sh
# shellcheck source=testbed/dom0/domains.sh
. /testbed/domains.sh
store_kind=$(cat /testbed/store)

main() {
    report "up"
    if [ "$store_kind" = daemon ]; then
        step 10 "xenstored starts" start_store || finish
    else
        step 40 "init-xenstore-domain starts the store's domain" start_store || finish
    fi
    step 20 "xen-init-dom0 and xenconsoled start" start_services || finish
    [ "$store_kind" = daemon ] || domain_steps
    tool_steps
    guest_steps
    second_guest_steps
    transcript_steps
    [ "$store_kind" = daemon ] || bad_boot_steps
    step 10 "the store still answers, and only its domain is left" aftermath
    finish
}

domain_steps() {
    step 10 "xl list shows the store's domain" store_listed
    step 10 "the domain logs on its paravirtual console" store_console
    step 5 "an unknown word of its command line is warned of by name" unknown_word
}

tool_steps() {
    step 10 "xenstore-write, xenstore-read" write_read
    step 10 "xenstore-read and -write of binary, empty and large values" values
    step 10 "xenstore-list, xenstore-ls" list_ls
    step 10 "xenstore-exists" exists
    step 10 "xenstore-chmod" chmod_ls
    step 10 "xenstore-rm" remove
    step 10 "xenstore-watch sees creation, change and removal" watch_tree
    step 20 "one transaction of 100 writes" big_transaction
    step 10 "xenstore-control check, quota" control
}

guest_steps() {
    step 30 "xl create makes a guest" create_guest || finish
    step 5 "its creation fired @introduceDomain" introduced
    step 60 "its kernel's xenbus connects over its own ring" guest_connects || finish
    step 5 "it read its own domid, name and vm" guest_keys
    step 10 "dom0 sees its data/hello" guest_hello
    step 5 "dom0's watch on data/hello fired" guest_watch
    step 10 "it is refused what is not its own" guest_denied
    step 30 "blkfront and blkback connect, and it reads its disk" guest_disk
    step 30 "xl shutdown: it powers off by control/shutdown" shutdown_guest
    step 5 "its end fired @releaseDomain" released
    step 15 "nothing is left of it" nothing_left guest
}

second_guest_steps() {
    step 30 "xl create makes a second guest" create_second || finish
    step 60 "it connects too" second_connects
    step 20 "xl destroy" destroy_second
    step 5 "its end fired @releaseDomain" released
    step 15 "nothing is left of it" nothing_left second
}

bad_boot_steps() {
    step 30 "booted without --event: says so and crashes" bad_boot "--event" 8 ""
    step 30 "booted with an absurd --event: says so and crashes" bad_boot "--event" 8 "--event 99999999999"
    step 30 "booted where nobody granted it a ring: says so and crashes" bad_boot "cannot map the ring" 8 "--event 3"
    step 30 "booted with too little memory: says so and crashes" bad_boot "memory" 4 "--event 3"
}

store_listed() {
    xl list
    expect "domain id" "$(recall store)" "$(xl domid Xenstore)"
    xl list | awk '$1 == "Xenstore" { print "note: " $3 " MiB, state " $5; found = 1 } END { exit !found }'
}

store_console() {
    eventually 5 grep -i ferrostore "$console-Xenstore.log"
    echo "note: $(head -n 1 "$console-Xenstore.log")"
}

unknown_word() {
    word=$(cat /testbed/unknown-word)
    grep "ignoring unknown word.*$word" "$console-Xenstore.log" || { echo "no warning names $word"; return 1; }
}

write_read() {
    xenstore-write /testbed/key value
    expect "value" "value" "$(xenstore-read /testbed/key)"
    xenstore-write /testbed/key changed
    expect "value" "changed" "$(xenstore-read /testbed/key)"
    expect "relative path" "0" "$(xenstore-read domid)"
    refuse "couldn't read path" xenstore-read /testbed/missing
}

values() {
    xenstore-write /testbed/value ""
    expect "empty value" "" "$(xenstore-read /testbed/value)"
    xenstore-write /testbed/value 'a\x00\xff\tb'
    expect "binary value" 'a\000\xff\tb' "$(xenstore-read /testbed/value)"
    large=$(head -c 2000 /dev/zero | tr '\0' x)
    xenstore-write /testbed/value "$large"
    expect "large value" "$large" "$(xenstore-read /testbed/value)"
}

list_ls() {
    xenstore-write /testbed/dir/b 2 /testbed/dir/a 1 /testbed/dir/a/deep 3
    expect "children" "a b" "$(xenstore-list /testbed/dir | sort | xargs)"
    expect "tree" '/testbed/dir/a = "1" /testbed/dir/a/deep = "3" /testbed/dir/b = "2"' \
        "$(xenstore-ls -f /testbed/dir | sort | tr '\n' ' ' | sed 's/ $//')"
    refuse "No such file or directory" xenstore-ls /testbed/missing
}

exists() {
    xenstore-exists /testbed/dir/a
    absent /testbed/dir/missing
}

chmod_ls() {
    xenstore-write /testbed/mode x
    xenstore-ls -p /testbed | grep -F 'mode = "x"' | grep -F "(n0)"
    xenstore-chmod /testbed/mode b0
    xenstore-ls -p /testbed | grep -F 'mode = "x"' | grep -F "(b0)"
}

remove() {
    xenstore-rm /testbed/dir
    absent /testbed/dir/a/deep
    absent /testbed/dir
    xenstore-exists /testbed/key
}

watch_tree() {
    watch tree /testbed/watched
    xenstore-write /testbed/watched/below one
    xenstore-write /testbed/watchedelse not-mine
    xenstore-write /testbed/watched/below two
    xenstore-rm /testbed/watched
    eventually 5 saw tree 4
    expect "events" "/testbed/watched/below /testbed/watched/below /testbed/watched" "$(unwatch tree | xargs)"
}

big_transaction() {
    set --
    for n in $(seq 100); do
        set -- "$@" "/testbed/many/node-$n" "$n"
    done
    xenstore-write "$@"
    expect "nodes" 100 "$(xenstore-list /testbed/many | wc -l)"
    expect "last value" 100 "$(xenstore-read /testbed/many/node-100)"
    xenstore-rm /testbed/many
}

control() {
    expect "check" OK "$(xenstore-control check)"
    xenstore-control quota | grep -E "^nodes +: +1000 "
    xenstore-control quota 0 | grep "^nodes "
    ! xenstore-control no-such-command || { echo "an unknown command was taken"; return 1; }
}

# Paused, so that what the guest finds is there before its first instruction.
create_guest() {
    watch introduce @introduceDomain
    xl create -p /testbed/guest.cfg 'name="guest"'
    guest=$(xl domid guest)
    remember guest "$guest"
    xenstore-write /testbed/private secret /testbed/shared "for the guest"
    xenstore-chmod /testbed/private n0
    xenstore-chmod /testbed/shared n0 "r$guest"
    watch hello "/local/domain/$guest/data/hello"
    watch release @releaseDomain
    xl unpause guest
    echo "note: domain $guest"
}

introduced() {
    eventually 5 saw introduce 2
    expect "event" "@introduceDomain" "$(unwatch introduce | sort -u)"
}

guest_connects() {
    eventually 55 grep "guest: domid" "$console-guest.log"
}

guest_keys() {
    guest=$(recall guest)
    eventually 5 grep "guest: vm" "$console-guest.log"
    expect "domid" "$guest" "$(heard domid)"
    expect "name" "guest" "$(heard name)"
    expect "vm" "$(xenstore-read "/local/domain/$guest/vm")" "$(heard vm)"
    expect "shared" "for the guest" "$(heard shared)"
}

# heard WORD: what the guest said about it on its console.
heard() { tr -d '\r' <"$console-guest.log" | sed -n "s/^guest: $1 //p"; }

guest_hello() {
    path=/local/domain/$(recall guest)/data/hello
    eventually 5 xenstore-exists "$path"
    expect "data/hello" "hello from guest" "$(xenstore-read "$path")"
}

guest_watch() {
    eventually 5 saw hello 2
    expect "event" "/local/domain/$(recall guest)/data/hello" "$(unwatch hello | sort -u)"
}

guest_denied() {
    eventually 5 grep "guest: write name" "$console-guest.log"
    tr -d '\r' <"$console-guest.log" | grep -F "guest: read private: " | grep -F "Permission denied"
    for refused in "write shared:" "write name:"; do
        heard "$refused" | grep .
    done
    expect "shared" "for the guest" "$(xenstore-read /testbed/shared)"
    expect "name" "guest" "$(xenstore-read "/local/domain/$(recall guest)/name")"
}

guest_disk() {
    guest=$(recall guest)
    eventually 25 grep "guest: ready" "$console-guest.log"
    expect "blkback's state" 4 "$(xenstore-read "/local/domain/0/backend/vbd/$guest/51712/state")"
    expect "blkfront's state" 4 "$(xenstore-read "/local/domain/$guest/device/vbd/51712/state")"
    expect "first line of the disk" "testbed disk" "$(heard disk)"
}

shutdown_guest() {
    xl shutdown -w guest
    eventually 3 grep "guest: powering off" "$console-guest.log"
}

create_second() {
    xl create -p /testbed/guest.cfg 'name="second"'
    remember second "$(xl domid second)"
    watch release @releaseDomain
    xl unpause second
    echo "note: domain $(recall second)"
}

second_connects() {
    eventually 55 xenstore-exists "/local/domain/$(recall second)/data/hello"
    expect "data/hello" "hello from second" "$(xenstore-read "/local/domain/$(recall second)/data/hello")"
}

destroy_second() {
    xl destroy second
}

# bad_boot WORD MEMORY_MB COMMAND_LINE: the image as an ordinary guest, in a boot that it cannot serve. It must crash, and
# before that say why, in a sentence with WORD, both to the hypervisor and on its paravirtual console.
bad_boot() {
    cat >"$results/bad.cfg" <<END
type = "pvh"
kernel = "/testbed/ferrostore.elf"
cmdline = "$3"
memory = $2
vcpus = 1
on_crash = "preserve"
END
    xl create "$results/bad.cfg" 'name="bad"'
    bad=$(xl domid bad)
    outcome=crashed
    eventually 15 is_crashed "$bad" || outcome="still runs"
    xl dmesg | tr -d '\r' | sed -n "s/^.*(d$bad) //p" >"$results/words"
    mv "$console-bad.log" "$console-bad-$bad.log"
    xl destroy bad
    cat "$results/words" "$console-bad-$bad.log"
    expect "outcome" crashed "$outcome"
    sentence=$(grep -iF -- "$1" "$results/words" | tail -n 1)
    grep -iF -- "$1" "$console-bad-$bad.log"
    echo "note: ${sentence:?"nothing said of $1 to the hypervisor"}"
}

aftermath() {
    xenstore-write /testbed/end yes
    expect "value" yes "$(xenstore-read /testbed/end)"
    xenstore-rm /testbed
    expect "check" OK "$(xenstore-control check)"
    expect "nodes" "local tool" "$(xenstore-list / | grep -xE 'local|tool|testbed' | sort | xargs)"
    eventually 5 only_known_domains
}

main
