// Package systemdtest runs the migration guide in a real systemd.
//
//	go test -tags systemd ./test/systemd/
//
// Each test boots Debian under systemd-nspawn on an overlay over a base that
// debootstrap made once, kept in $OV_TEST_CACHE (default ~/.cache/ov-test).
// It needs Linux, root, debootstrap, systemd-nspawn and nsenter; without them
// the tests are skipped and say why, or fail when OV_REQUIRE_REAL=1.
package systemdtest
