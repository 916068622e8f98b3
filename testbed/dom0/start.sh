# How dom0 starts: its store, then the services that need one.
# shellcheck shell=sh

start_store() { "start_store_$(cat /testbed/store)"; }

# The store's domain, by Debian's own helper; one try per boot, because dom0's kernel accepts one store only.
start_store_domain() {
    timeout 30 init-xenstore-domain --kernel /testbed/ferrostore.elf.gz --memory 8 --param "$(cat /testbed/param)" || return
    store=$(sed -n 's/^domid://p' /run/xen/xenstored.pid)
    [ -n "$store" ] || { echo "/run/xen/xenstored.pid names no domain: $(cat /run/xen/xenstored.pid)"; return 1; }
    remember store "$store"
    echo "note: domain $store"
}

# Debian's own daemon instead, to see what the scenario says of it; not detached, so that its last words are in the log.
start_store_daemon() {
    xenstored --no-fork --pid-file /run/xen/xenstored.pid >/var/log/xen/xenstored.log 2>&1 &
    eventually 5 test -S /var/run/xenstored/socket
    eventually 5 xenstore-exists /
    remember store 0
}

start_services() {
    xen-init-dom0
    xenconsoled --log=guest --log-dir=/var/log/xen
    echo "testbed disk" >/run/testbed/disk
    truncate -s 1M /run/testbed/disk
    losetup /dev/loop0 /run/testbed/disk
}
