package scan

import (
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opaquevault/ov/pkg/version"
)

// The part of SARIF 2.1.0 that findings need
// (docs.oasis-open.org/sarif/sarif/v2.1.0). There is no snippet: it would hold
// the secret.
type (
	sarif struct {
		Schema  string     `json:"$schema"`
		Version string     `json:"version"`
		Runs    []sarifRun `json:"runs"`
	}
	sarifRun struct {
		Tool       sarifTool     `json:"tool"`
		ColumnKind string        `json:"columnKind"`
		Results    []sarifResult `json:"results"`
	}
	sarifTool struct {
		Driver sarifDriver `json:"driver"`
	}
	sarifDriver struct {
		Name    string      `json:"name"`
		Version string      `json:"version"`
		Rules   []sarifRule `json:"rules"`
	}
	sarifRule struct {
		ID    string       `json:"id"`
		Short sarifMessage `json:"shortDescription"`
	}
	sarifMessage struct {
		Text string `json:"text"`
	}
	sarifResult struct {
		RuleID     string           `json:"ruleId"`
		RuleIndex  int              `json:"ruleIndex"`
		Level      string           `json:"level"`
		Message    sarifMessage     `json:"message"`
		Locations  []sarifLocation  `json:"locations"`
		Properties *sarifProperties `json:"properties,omitempty"`
	}
	sarifLocation struct {
		Physical sarifPhysical `json:"physicalLocation"`
	}
	sarifPhysical struct {
		Artifact sarifArtifact `json:"artifactLocation"`
		Region   sarifRegion   `json:"region"`
	}
	sarifArtifact struct {
		URI string `json:"uri"`
	}
	sarifRegion struct {
		StartLine   int `json:"startLine"`
		StartColumn int `json:"startColumn"`
		EndLine     int `json:"endLine"`
		EndColumn   int `json:"endColumn"`
	}
	sarifProperties struct {
		Commit string `json:"commit"`
		Author string `json:"author,omitempty"`
		Date   string `json:"date,omitempty"`
	}
)

func sarifLog(found []Finding) sarif {
	run := sarifRun{
		Tool:       sarifTool{sarifDriver{"ov scan", version.String(), []sarifRule{}}},
		ColumnKind: "unicodeCodePoints",
		Results:    []sarifResult{},
	}
	rules := &run.Tool.Driver.Rules
	for _, f := range found {
		index := slices.IndexFunc(*rules, func(r sarifRule) bool { return r.ID == f.Rule })
		if index < 0 {
			index = len(*rules)
			*rules = append(*rules, sarifRule{f.Rule, sarifMessage{f.Description}})
		}
		result := sarifResult{
			RuleID: f.Rule, RuleIndex: index, Level: "error",
			Message: sarifMessage{f.Rule + ": " + f.shown()},
			Locations: []sarifLocation{{sarifPhysical{
				sarifArtifact{fileURI(f.File)},
				sarifRegion{f.Line, f.Column, f.EndLine, f.EndColumn},
			}}},
		}
		if f.Commit != "" {
			result.Properties = &sarifProperties{f.Commit, f.Author, f.Date}
		}
		run.Results = append(run.Results, result)
	}
	return sarif{"https://json.schemastore.org/sarif-2.1.0.json", "2.1.0", []sarifRun{run}}
}

// fileURI is a path as a URI reference (RFC 3986), relative if the path is.
func fileURI(path string) string {
	u := url.URL{Path: filepath.ToSlash(path)}
	if strings.HasPrefix(u.Path, "/") {
		u.Scheme = "file"
	}
	return u.String()
}
