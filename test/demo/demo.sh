#!/bin/bash
# From a .env file to a running program without it, in a throwaway home. Asks
# nothing, leaves nothing. `make demo` builds first.
set -euo pipefail
exec 2>&1 # what ov says to a person comes in its place
cd "$(dirname "$0")/../.."
bin=$PWD/bin

home=$(mktemp -d)
cleanup() {
	ov agent stop >/dev/null 2>&1 || true
	rm -rf "$home"
}
trap cleanup EXIT
# Nothing of the caller's vault, agent or settings.
unset "${!OV_@}" "${!XDG_@}" CREDENTIALS_DIRECTORY
mkdir -m 0700 "$home/run" "$home/tmp"
export HOME=$home XDG_DATA_HOME=$home/data XDG_CONFIG_HOME=$home/config \
	XDG_RUNTIME_DIR=$home/run TMPDIR=$home/tmp PATH=$bin:$PATH
cd "$home"

say() { printf '\n# %s\n' "$*"; }
show() { printf '$ %s\n' "$*"; "$@"; }
password='only for this demo'

say "An application's .env file, in the clear on disk."
cat >.env <<'ENV'
# a sample
DATABASE_URL="postgres://app:s3cret@db.internal/app"
export STRIPE_SECRET_KEY='sk_test_not_a_real_one'
MOTD="two
lines"
ENV
show cat .env

say "A vault under a master password, and the agent that holds it unlocked."
echo '$ ov auth init'
printf '%s\n' "$password" | ov auth init --password-stdin
echo '$ ov agent start'
printf '%s\n' "$password" | ov agent start --password-stdin

say "The .env goes into the vault. The file is no longer needed."
show ov secret import .env --app demo --env production
rm .env
show ov secret list --app demo --env production

say "The storage never sees a plaintext: this finds none of the values."
vault=$XDG_DATA_HOME/ov/vault.db
for value in s3cret sk_test_not_a_real_one; do
	if grep -rqF "$value" "$vault"; then echo "found $value in $vault"; exit 1; fi
done
echo "no value is in $(basename "$vault")"

say "A program gets the secrets in its environment, and only it."
# shellcheck disable=SC2016 # for the child to expand
show ov run --app demo --env production -- sh -c \
	'echo "I am process $$ and my environment has:"; env | grep -E "^(DATABASE_URL|STRIPE_SECRET_KEY)="; echo "MOTD is: $MOTD"' |
	tee "$home/saw"
grep -qxF 'DATABASE_URL=postgres://app:s3cret@db.internal/app' "$home/saw"
grep -qxF 'STRIPE_SECRET_KEY=sk_test_not_a_real_one' "$home/saw"

say "A secret that is not there: nothing starts."
if show ov run --app demo --env production --secrets DATABASE_URI -- echo started; then
	echo "it started without its secret"
	exit 1
fi

say "The agent forgets the key and stops."
show ov agent lock
show ov agent stop
say "Done. Nothing is left of it."
