package vault

import "testing"

// FixtureRecords are the records of the fixture's vault, for the reference
// implementation, which is in a package of its own.
func FixtureRecords(t *testing.T) (password string, records map[string][]byte, values map[Ref]map[string][]string) {
	_, m := setup(t)
	return fixturePassword, m.records, fixtureValues
}
