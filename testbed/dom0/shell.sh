# A shell in dom0, after the store and the services have started.

# shellcheck source=testbed/dom0/steps.sh
. /testbed/steps.sh
# shellcheck source=testbed/dom0/start.sh
. /testbed/start.sh
export PS1='dom0# '
if start_store; then
    start_services
    cat <<'END'

This is dom0. Try:
  xl list
  xenstore-ls -f
  xl create /testbed/guest.cfg 'name="one"'
  tail /var/log/xen/guest-*.log

END
else
    echo "The store did not start. What asks it will hang (xenstore-*, most of xl); xl dmesg and xl debug-keys work."
fi
echo "Leave with exit, or with Ctrl-a x."
setsid cttyhack sh
exit 0
