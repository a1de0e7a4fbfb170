package peer

import (
	"net"
	"testing"
)

func BenchmarkTmpAdmit(b *testing.B) {
	socket := openDir(b) + "/s"
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		b.Fatal(err)
	}
	run := func(name string, leave bool, lim Limits) {
		b.Run(name, func(b *testing.B) {
			lm := Limit(l, OwnOrRoot(), lim, nil).(*limiter)
			for b.Loop() {
				b.StopTimer()
				c, err := net.Dial("unix", socket)
				if err != nil {
					b.Fatal(err)
				}
				if leave {
					_ = c.Close()
				}
				s, err := l.AcceptUnix()
				if err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
				a := lm.admit(s)
				b.StopTimer()
				if a != nil {
					_ = a.Close()
				}
				_ = c.Close()
				b.StartTimer()
			}
		})
	}
	run("stay", false, DefaultLimits())
	run("leave", true, DefaultLimits())
	run("full", false, Limits{})
}
