# The scenario of live update: the store is replaced while it serves, by an image like it and by others, and survives its own crashes.
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
    step 60 "xenstore-control live-update replaces it by an image like it" update_to_same
    finish
}

update_to_same() {
    xenstore-write /testbed/key before
    xenstore-control live-update /testbed/ferrostore.elf
    expect "value" before "$(xenstore-read /testbed/key)"
}

main
