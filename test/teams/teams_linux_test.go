package teams

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/opaquevault/ov/test/pg"
)

// made is what ov-server init prints.
type made struct {
	CA          string `json:"ca"`
	Certificate string `json:"certificate"`
}

// One server on its embedded storage, killed at random and started again.
func TestServerKilled(t *testing.T) {
	s := newServer(t, "")
	var m made
	s.admin(&m, "init", "--json")
	s.start()
	l := newLoad(t, s, m.CA, newFront(t, s))
	l.start()
	for range 2 * rounds(t) {
		pause(2 * time.Second)
		s.kill()
		pause(time.Second)
		s.start()
		l.flows("ov-server was killed and started again")
	}
	l.end()
}

// pause lets a random time pass, which d bounds.
func pause(d time.Duration) {
	time.Sleep(rand.N(d))
}

// Two servers on a primary with a synchronous standby. The primary is killed and
// the standby promoted, then one of the servers is killed, and later started
// again; a new standby takes the place of the primary that was.
func TestPrimaryAndServerKilled(t *testing.T) {
	primary := pg.Test(t)
	standby := newStandby(t, primary, 0)
	dsn := pg.DSN("postgres", primary, standby)
	a, b := newServer(t, dsn), newServer(t, dsn)
	var m made
	a.admin(&m, "init", "--json")
	a.admin(nil, "migrate")
	b.serve = []string{"--tls-cert", m.Certificate, "--tls-key", m.Certificate}
	servers := []*ovServer{a, b}
	a.start()
	b.start()
	l := newLoad(t, a, m.CA, newFront(t, a, b), newFront(t, b, a))
	l.start()
	for i := range rounds(t) {
		pause(3 * time.Second)
		if err := primary.Kill(); err != nil {
			t.Fatal(err)
		}
		pause(500 * time.Millisecond)
		if err := standby.Promote(); err != nil {
			t.Fatal(err)
		}
		killed := servers[rand.IntN(2)]
		both := i%3 == 2 // and now and then all there is
		if rand.IntN(2) == 0 || i == 0 {
			l.flows("the primary was killed and the standby promoted")
			pause(2 * time.Second)
		}
		killed.kill()
		if both {
			for _, s := range servers {
				s.kill()
			}
			for _, s := range servers {
				s.start()
			}
			l.flows("both ov-servers were killed, and started again")
		} else {
			l.flows("one of two ov-servers was killed")
			pause(2 * time.Second)
			killed.start()
		}
		pause(time.Second)
		primary, standby = standby, newStandby(t, standby, primary.Port)
		l.flows("the ov-server is back, and a new standby follows")
	}
	l.end()
}

func newStandby(t *testing.T, primary *pg.Server, port int) *pg.Server {
	t.Helper()
	s, err := primary.Standby(pg.Dir(t), port)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Stop() })
	return s
}
