package command

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/opaquevault/ov/pkg/apikey"
	"github.com/opaquevault/ov/pkg/hint"
	"github.com/opaquevault/ov/pkg/safefile"
)

// APIKey is an API key as it is printed, as JSON or to a person.
type APIKey struct {
	ID         string     `json:"id"` // 16 hexadecimal digits
	Name       string     `json:"name"`
	Scope      string     `json:"scope"`         // read, write or admin
	App        string     `json:"app,omitempty"` // if not empty, it is for this app alone
	Env        string     `json:"env,omitempty"` // if not empty, for this env of it
	State      State      `json:"state"`
	Created    time.Time  `json:"created"`
	Expires    *time.Time `json:"expires,omitempty"`
	LastUsed   *time.Time `json:"last_used,omitempty"`
	Revoked    *time.Time `json:"revoked,omitempty"`
	MachineKey string     `json:"machine_key,omitempty"` // fingerprint of the one that it goes with
	Token      string     `json:"token,omitempty"`       // the key itself, only where it was made
}

// State says whether an API key is accepted.
type State string

// The states.
const (
	Active  State = "active"
	Expired State = "expired"
	Revoked State = "revoked"
)

// StateOf returns the state of an API key with these times; nil is never.
func StateOf(expires, revoked *time.Time, now time.Time) State {
	switch {
	case revoked != nil:
		return Revoked
	case expires != nil && !now.Before(*expires):
		return Expired
	}
	return Active
}

// Reach says what the key may do, and where.
func (k APIKey) Reach() string {
	switch {
	case k.Env != "":
		return k.Scope + ", of env " + safefile.Quote(k.App+"/"+k.Env)
	case k.App != "":
		return k.Scope + ", of app " + safefile.Quote(k.App)
	}
	return k.Scope
}

func (k APIKey) state() string {
	text := string(k.State)
	switch {
	case k.State == Revoked:
		text += stamp(" ", k.Revoked)
	case k.State == Expired:
		text += stamp(" ", k.Expires)
	case k.Expires != nil:
		text += stamp(" until ", k.Expires)
	}
	return text
}

// stamp is a time for a person behind a text, or nothing for none.
func stamp(before string, t *time.Time) string {
	if t == nil {
		return ""
	}
	return before + t.Local().Format(time.DateTime)
}

// PrintNewAPIKey prints a key that was made, for the only time, to out, and to
// talk what it is.
func PrintNewAPIKey(out, talk io.Writer, k APIKey, token []byte, asJSON bool) error {
	if asJSON {
		k.Token = string(token)
		return PrintJSON(out, k)
	}
	end := "without an end"
	if k.Expires != nil {
		end = stamp("until ", k.Expires)
	}
	fmt.Fprintf(talk, "made the API key %s %s, scope %s, %s; it is not shown again:\n", k.ID, safefile.Quote(k.Name), k.Reach(), end)
	_, err := fmt.Fprintf(out, "%s\n", token)
	return err
}

// PrintAPIKeys prints a list of keys.
func PrintAPIKeys(out io.Writer, list []APIKey, asJSON bool) error {
	if asJSON {
		return printAPIKeysJSON(out, list)
	}
	return Table(out, "ID\tNAME\tSCOPE\tCREATED\tLAST USED\tSTATE", len(list), func(i int) []string {
		k := list[i]
		used := "never"
		if k.LastUsed != nil {
			used = stamp("", k.LastUsed)
		}
		return []string{k.ID, safefile.Quote(k.Name), k.Reach(), stamp("", &k.Created), used, k.state()}
	})
}

// PrintRevoked prints keys that were revoked: as JSON to out, or to talk.
func PrintRevoked(out, talk io.Writer, list []APIKey, asJSON bool) error {
	if asJSON {
		return printAPIKeysJSON(out, list)
	}
	for _, k := range list {
		fmt.Fprintf(talk, "revoked the API key %s %s\n", k.ID, safefile.Quote(k.Name))
	}
	return nil
}

func printAPIKeysJSON(out io.Writer, list []APIKey) error {
	if list == nil {
		list = []APIKey{}
	}
	return PrintJSON(out, list)
}

// APIKeyID reads the id of an API key. The error does not repeat it: it may be
// the key itself.
func APIKeyID(text, list string) (string, error) {
	id := strings.ToLower(text)
	if !apikey.ValidID(id) {
		return "", Usage(hint.Errorf("see: "+list, "not the id of an API key, which has 16 hexadecimal digits"))
	}
	return id, nil
}

// Scope is the flag for what an API key may do: read, write or admin.
type Scope string

// Set implements pflag.Value.
func (s *Scope) Set(text string) error {
	switch text {
	case "read", "write", "admin":
		*s = Scope(text)
		return nil
	}
	return errors.New("none of read, write, admin")
}

// String implements pflag.Value.
func (s *Scope) String() string { return string(*s) }

// Type implements pflag.Value.
func (s *Scope) Type() string { return "scope" }

// ExpiryUsage is what help says of a flag that is an Expiry.
const ExpiryUsage = "when it ends: after a time such as 90d or 12h, or on a date such as 2027-01-31 (default: never)"

// maxExpiry bounds how far away a time to come is.
const maxExpiry = 36500 * 24 * time.Hour

// Expiry is the flag for a time to come; zero is never.
type Expiry struct{ time.Time }

// Set takes a number of days (90d), what time.ParseDuration takes, or a date,
// whose end in UTC is meant.
func (e *Expiry) Set(text string) error {
	now := time.Now()
	var at time.Time
	if days, ok := strings.CutSuffix(text, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return err
		}
		at = now.Add(time.Duration(n) * 24 * time.Hour)
	} else if on, err := time.Parse(time.DateOnly, text); err == nil {
		at = on.AddDate(0, 0, 1)
	} else {
		d, err := time.ParseDuration(text)
		if err != nil {
			return err
		}
		at = now.Add(d)
	}
	if !at.After(now) || at.After(now.Add(maxExpiry)) {
		return errors.New("it is over already, or too far away")
	}
	e.Time = at
	return nil
}

// String implements pflag.Value.
func (e *Expiry) String() string {
	if e.IsZero() {
		return ""
	}
	return e.Format(time.RFC3339)
}

// Type implements pflag.Value.
func (e *Expiry) Type() string { return "time to come" }
