package xdg

import "testing"

// What systemd gives a service goes before what a user has; what is relative is
// ignored.
func TestOfService(t *testing.T) {
	t.Setenv("HOME", "/home/deploy")
	for _, tt := range []struct{ given, xdg, cache, state string }{
		{"", "", "/home/deploy/.cache/ov/x", "/home/deploy/.local/state/ov/x"},
		{"", "/xdg", "/xdg/ov/x", "/xdg/ov/x"},
		{"/var/one", "/xdg", "/var/one/ov/x", "/var/one/ov/x"},
		{"/var/one:/var/two", "", "/var/one/ov/x", "/var/one/ov/x"},
		{"var", "xdg", "/home/deploy/.cache/ov/x", "/home/deploy/.local/state/ov/x"},
	} {
		for _, name := range []string{"CACHE_DIRECTORY", "STATE_DIRECTORY"} {
			t.Setenv(name, tt.given)
		}
		for _, name := range []string{"XDG_CACHE_HOME", "XDG_STATE_HOME"} {
			t.Setenv(name, tt.xdg)
		}
		cache, err := Cache("x")
		if err != nil || cache != tt.cache {
			t.Errorf("%+v: cache %s, %v", tt, cache, err)
		}
		state, err := State("x")
		if err != nil || state != tt.state {
			t.Errorf("%+v: state %s, %v", tt, state, err)
		}
	}
}
