package config

import (
	"path/filepath"
	"slices"

	"go.yaml.in/yaml/v3"

	"github.com/opaquevault/ov/pkg/hint"
)

// Approve says when `ov mcp serve` asks the person before it acts.
type Approve string

// When to ask.
const (
	ApproveAuto  Approve = "auto"  // where the client can; the default
	ApproveAsk   Approve = "ask"   // always: a client that cannot ask gets a refusal
	ApproveNever Approve = "never" // not at all
)

// Valid reports whether a is one of the above.
func (a Approve) Valid() bool {
	return a == ApproveAuto || a == ApproveAsk || a == ApproveNever
}

// A Rule is a command line, program and arguments. What its elements mean is
// up to the reader: package mcp.
type Rule []string

// MCP is what the files say to `ov mcp serve`. Allow and Deny hold the rules of
// both files. Approve is only the user's own to say: .ov.yaml comes with a
// checkout, and a checkout does not turn off questions about itself.
type MCP struct {
	Approve     Approve // "" if config.toml does not say
	Allow, Deny []Rule
	Project     string // directory of .ov.yaml, absolute; "" if there is none
}

// ResolveMCP reads .ov.yaml, as Resolve finds it from dir, and config.toml.
func ResolveMCP(dir string) (MCP, error) {
	p, file, err := findProject(dir)
	if err != nil {
		return MCP{}, err
	}
	f, _, err := readConfig()
	if err != nil {
		return MCP{}, err
	}
	m := MCP{
		Approve: f.MCP.Approve,
		Allow:   slices.Concat(f.MCP.Allow, p.mcp.Allow),
		Deny:    slices.Concat(f.MCP.Deny, p.mcp.Deny),
	}
	if file != "" {
		m.Project = filepath.Dir(file)
	}
	return m, nil
}

// rules are the table mcp in both files:
//
//	mcp:
//	  allow:
//	    - [npm, test]
//	    - [go, test, ./...]
//	  deny:
//	    - [rm]
type rules struct {
	Allow []Rule `toml:"allow,omitempty"`
	Deny  []Rule `toml:"deny,omitempty"`
}

// check refuses a rule without a program.
func (r rules) check() *Error {
	for _, rule := range slices.Concat(r.Allow, r.Deny) {
		if len(rule) == 0 || rule[0] == "" {
			return &Error{Msg: "a rule of mcp.allow or mcp.deny is empty: it is a program and its arguments"}
		}
	}
	return nil
}

const ruleHint = `an example: mcp: {allow: [["npm", "test"], ["go", "test", "./..."]]}`

// yamlRules reads mcp of .ov.yaml.
func yamlRules(n *yaml.Node) (rules, error) {
	var r rules
	if n.Kind != yaml.MappingNode {
		return r, hint.Wrap(at(n, "mcp is not a mapping: its keys are allow and deny"), ruleHint)
	}
	seen := map[string]bool{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key := n.Content[i]
		var err error
		switch {
		case seen[key.Value]:
			err = at(key, "the key stands here a second time")
		case key.Value == "allow":
			r.Allow, err = ruleList(n.Content[i+1])
		case key.Value == "deny":
			r.Deny, err = ruleList(n.Content[i+1])
		case key.Value == "approve":
			err = hint.Wrap(at(key, "approve is not for a project to say"),
				"say it in config.toml, under [mcp], or with --approve")
		default:
			err = hint.Wrap(at(key, "unknown key: those of mcp are allow and deny"), ruleHint)
		}
		if err != nil {
			return rules{}, err
		}
		seen[key.Value] = true
	}
	return r, nil
}

func ruleList(n *yaml.Node) ([]Rule, error) {
	if n.Kind != yaml.SequenceNode {
		return nil, hint.Wrap(at(n, "not a list of commands"), ruleHint)
	}
	var list []Rule
	for _, item := range n.Content {
		if item.Kind != yaml.SequenceNode {
			return nil, hint.Wrap(at(item, "a command is a list: the program, then each argument"), ruleHint)
		}
		var rule Rule
		for _, word := range item.Content {
			if word.Kind != yaml.ScalarNode || word.Tag == "!!null" {
				return nil, hint.Wrap(at(word, "not a word of a command"), ruleHint)
			}
			rule = append(rule, word.Value)
		}
		if len(rule) == 0 || rule[0] == "" {
			return nil, hint.Wrap(at(item, "a command is empty"), ruleHint)
		}
		list = append(list, rule)
	}
	return list, nil
}
