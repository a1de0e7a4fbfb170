// Package teams kills what a team's vault lies on while the team works on it: the
// real ov-server, two of them, and their PostgreSQL with its standby. Eight
// clients with real keys write, two read. Afterwards every write that was
// acknowledged is there with its value and version, and none is there twice.
//
//	go test ./test/teams/
//
// OV_TEAMS is the number of rounds of kills, by default 2. What came of it all is
// counted in the last lines of each test.
//
// A client knows one address, as people do: ov has one --vault. That address is a
// front, which forwards TCP to the first of its servers that answers, as a load
// balancer or a DNS name does. So a client whose server dies sends the same
// commit, with the same id, to the other one, and that must not do it again. The
// front also breaks a connection three times a second, so that answers are lost.
package teams
