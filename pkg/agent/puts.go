package agent

import (
	"context"
	"fmt"

	"github.com/opaquevault/ov/pkg/agent/peer"
	"github.com/opaquevault/ov/pkg/hint"
)

// putUnit is in what steps the memory of Puts is counted, in bytes.
const putUnit = 1 << 20

// puts shares out the memory that Puts fill before anything is written. Whoever
// fills one level, and then stalls, leaves room to those beside it.
type puts struct{ units *peer.Inflight }

func newPuts() *puts {
	return &puts{peer.NewInflight(peer.Limits{
		Total: 160, UID: 128, Unit: 104, Exe: 80, PID: maxPut / putUnit,
	})}
}

// room is what one Put has of it.
type room struct {
	puts   *puts
	caller *peer.Info
	bytes  int
	units  []func() // to give back
}

func (p *puts) room(ctx context.Context) *room {
	caller, _ := peer.FromContext(ctx) // guard has looked
	return &room{puts: p, caller: caller}
}

// take makes room for n more bytes. It fails with ErrTooLarge or ErrLimit.
func (r *room) take(n int) error {
	if r.bytes += n; r.bytes > maxPut {
		return hint.Errorf("write them in parts", "%w: more than %d bytes of secrets at once", ErrTooLarge, maxPut)
	}
	for r.bytes > len(r.units)*putUnit {
		giveBack, err := r.puts.units.Acquire(r.caller)
		if err != nil {
			return tooMany(fmt.Errorf("no room for more secrets: %w", err))
		}
		r.units = append(r.units, giveBack)
	}
	return nil
}

func (r *room) leave() {
	for _, giveBack := range r.units {
		giveBack()
	}
}
