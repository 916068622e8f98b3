# The transcripts alone, without the rest of the scenario.

# shellcheck source=testbed/dom0/steps.sh
. /testbed/steps.sh
# shellcheck source=testbed/dom0/start.sh
. /testbed/start.sh
# shellcheck source=testbed/dom0/players.sh
. /testbed/players.sh

report "up"
step 40 "the store starts" start_store || finish
step 20 "xen-init-dom0 and xenconsoled start" start_services || finish
transcript_steps
finish
