package mcp

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/opaquevault/ov/pkg/config"
	"github.com/opaquevault/ov/pkg/hint"
)

// policy says what needs a person's word.
type policy struct {
	approve     config.Approve
	allow, deny []config.Rule
}

// allowed reports whether a rule allows the command. A rule is the command, word
// by word; "*" stands for any one word, and "**" at the end for any that follow.
func (p policy) allowed(command []string) bool {
	return slices.ContainsFunc(p.allow, func(r config.Rule) bool {
		rest, ok := match(r, command)
		return ok && len(rest) == 0
	})
}

// checkAllow refuses a rule that is for every program: it would turn the
// questions off, which a checkout's file must not.
func checkAllow(rules []config.Rule) error {
	for _, r := range rules {
		if len(r) == 0 || r[0] == "*" || r[0] == "**" {
			return hint.Errorf(`name one; who wants no questions at all says approve = "never" in config.toml, under [mcp]`,
				"a rule of mcp.allow names no program: %s", visibleAll(r))
		}
	}
	return nil
}

// denied returns the rule that forbids the command, and every command that
// begins with its words.
func (p policy) denied(command []string) config.Rule {
	i := slices.IndexFunc(p.deny, func(r config.Rule) bool {
		_, ok := match(r, command)
		return ok
	})
	if i < 0 {
		return nil
	}
	return p.deny[i]
}

// match reports whether the command begins with the rule, and what follows.
func match(r config.Rule, command []string) (rest []string, ok bool) {
	for i, word := range r {
		if word == "**" && i == len(r)-1 {
			return nil, true
		}
		if len(command) == 0 || word != "*" && word != command[0] {
			return nil, false
		}
		command = command[1:]
	}
	return command, true
}

// questions are what a person was asked and has not answered yet: what exactly,
// by a token that only the one answer carries. So an answer approves what was
// shown, once, and nothing else.
type questions struct {
	mu   sync.Mutex
	open []question // the oldest first
}

type question struct{ token, text string }

// maxQuestions bounds the questions without an answer: the oldest go.
const maxQuestions = 32

func (q *questions) ask(text string) (token string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.open) >= maxQuestions {
		q.open = slices.Delete(q.open, 0, 1)
	}
	token = rand.Text()
	q.open = append(q.open, question{token, text})
	return token
}

// answered reports whether the text is what the token was given for.
func (q *questions) answered(token, text string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	i := slices.IndexFunc(q.open, func(o question) bool { return o.token == token })
	if i < 0 {
		return false
	}
	asked := q.open[i].text
	q.open = slices.Delete(q.open, i, i+1)
	return asked == text
}

const approvalKey = "approval"

// approved returns nil, nil when the call may go on: what it does is shown in
// question. Otherwise it returns what to answer: a question to the person, or
// the error why not. A client asks the person and calls again with the answer
// (SEP-2322); for one that is older than that the SDK does both.
func (s *server) approved(ctx context.Context, req *sdk.CallToolRequest, question string) (*sdk.CallToolResult, error) {
	if s.policy.approve == config.ApproveNever {
		return nil, nil
	}
	if !canAsk(req.Session) {
		if s.policy.approve == config.ApproveAuto {
			return nil, nil
		}
		return nil, hint.Errorf(`use a client that can (MCP elicitation), or let a person allow the command in .ov.yaml, mcp: {allow: [["npm", "test"]]}`,
			"a person has to approve this, and this client cannot ask one")
	}
	if req.Params.RequestState != "" {
		if !s.asked.answered(req.Params.RequestState, question) {
			return nil, fmt.Errorf("the approval is not for this call: call again")
		}
		answer, ok := req.Params.InputResponses[approvalKey].(*sdk.ElicitResult)
		switch {
		case ok && answer.Action == "accept":
			return nil, nil
		case ok && answer.Action == "decline":
			return nil, fmt.Errorf("the person did not approve this")
		}
		return nil, fmt.Errorf("nobody approved this: the question was closed without an answer")
	}
	if err := s.intercept.judgeText(ctx, toClient, "question", []byte(question)); err != nil {
		return nil, err
	}
	return &sdk.CallToolResult{
		InputRequests: sdk.InputRequestMap{approvalKey: &sdk.ElicitParams{
			Message:         question,
			RequestedSchema: map[string]any{"type": "object", "properties": map[string]any{}},
		}},
		RequestState: s.asked.ask(question),
	}, nil
}

// canAsk reports whether the client can ask its person a question.
func canAsk(session *sdk.ServerSession) bool {
	params := session.InitializeParams()
	if params == nil || params.Capabilities == nil || params.Capabilities.Elicitation == nil {
		return false
	}
	e := params.Capabilities.Elicitation
	return e.Form != nil || e.URL == nil // neither: a form, by the older protocol
}

// maxBlank is how many spaces in a row are shown as they are: enough for the
// indentation of a script, and too few to push what follows out of sight.
const maxBlank = 16

// blank are the characters that count as printable and show nothing.
func blank(r rune) bool {
	return r == '\u2800' || unicode.In(r, unicode.Other_Default_Ignorable_Code_Point, unicode.Variation_Selector)
}

// visible is a word of a command line as a person can judge it: what is not
// plain is quoted, with control characters, those that change the direction of
// writing, and those that cannot be seen as escapes.
func visible(word string) string {
	plain := func(r rune) bool {
		return r < 0x80 && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-_./:=,@%+", r))
	}
	if word != "" && strings.IndexFunc(word, func(r rune) bool { return !plain(r) }) < 0 {
		return word
	}
	quoted := strconv.Quote(word)
	if gap := strings.Repeat(" ", maxBlank+1); !strings.Contains(quoted, gap) && strings.IndexFunc(quoted, blank) < 0 {
		return quoted
	}
	var b strings.Builder
	for len(quoted) > 0 {
		r, size := utf8.DecodeRuneInString(quoted)
		spaces := len(quoted) - len(strings.TrimLeft(quoted, " "))
		switch {
		case spaces > maxBlank:
			b.WriteString(strings.Repeat(`\x20`, spaces))
			size = spaces
		case spaces > 0:
			b.WriteString(quoted[:spaces])
			size = spaces
		case blank(r):
			escape := strconv.QuoteRuneToASCII(r)
			b.WriteString(escape[1 : len(escape)-1])
		default:
			b.WriteString(quoted[:size])
		}
		quoted = quoted[size:]
	}
	return b.String()
}

func visibleAll(words []string) string {
	list := make([]string, len(words))
	for i, word := range words {
		list[i] = visible(word)
	}
	return strings.Join(list, " ")
}
