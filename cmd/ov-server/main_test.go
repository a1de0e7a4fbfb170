package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"ov-server": main})
}

// TestScripts runs testdata/script/*.txtar. Besides testscript's own commands
// there are
//
//	exit CODE PROGRAM ARG...  run a program, which must exit with CODE
//	mode FILE MODE            the file has the mode, such as drwx------
//	await FILE                wait until the file is there
//	setenv NAME FILE          set a variable to what is in the file
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireUniqueNames:  true,
		RequireExplicitExec: true,
		Setup: func(env *testscript.Env) error {
			// A socket's path has at most 107 bytes.
			data, err := os.MkdirTemp("", "ovs")
			if err != nil {
				return err
			}
			env.Defer(func() { _ = os.RemoveAll(data) })
			env.Vars = append(env.Vars, "D="+data+"/d", "HOME="+data+"/home", "XDG_DATA_HOME=", "TZ=UTC",
				"OV_SERVER_DATABASE_URL=", "CREDENTIALS_DIRECTORY=")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exit": func(ts *testscript.TestScript, _ bool, argv []string) {
				code, err := strconv.Atoi(argv[0])
				ts.Check(err)
				err = ts.Exec(argv[1], argv[2:]...)
				var exited *exec.ExitError
				got := 0
				if errors.As(err, &exited) {
					got = exited.ExitCode()
				} else {
					ts.Check(err)
				}
				if got != code {
					ts.Fatalf("exit status %d, not %d", got, code)
				}
			},
			"mode": func(ts *testscript.TestScript, _ bool, argv []string) {
				st, err := os.Lstat(ts.MkAbs(argv[0]))
				ts.Check(err)
				if got := st.Mode().String(); got != argv[1] {
					ts.Fatalf("%s has the mode %s, not %s", argv[0], got, argv[1])
				}
			},
			"await": func(ts *testscript.TestScript, _ bool, argv []string) {
				for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
					if _, err := os.Lstat(ts.MkAbs(argv[0])); err == nil {
						return
					} else if time.Now().After(end) {
						ts.Fatalf("%v", err)
					}
				}
			},
			"setenv": func(ts *testscript.TestScript, _ bool, argv []string) {
				ts.Setenv(argv[0], strings.TrimSpace(ts.ReadFile(argv[1])))
			},
		},
		Condition: func(cond string) (bool, error) {
			if cond == "root" {
				return os.Geteuid() == 0, nil
			}
			return false, fmt.Errorf("unknown condition %s", cond)
		},
	})
}
