package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/pprof/profile"
)

func known() *profile.Profile {
	m := &profile.Mapping{ID: 1, File: "/bin/a", BuildID: "c0ffee", HasFunctions: true}
	var functions []*profile.Function
	for i, name := range []string{"inlined", "leaf", "main"} {
		functions = append(functions, &profile.Function{ID: uint64(i + 1), Name: name})
	}
	leaf := &profile.Location{ID: 1, Mapping: m, Line: []profile.Line{{Function: functions[0]}, {Function: functions[1]}}}
	root := &profile.Location{ID: 2, Mapping: m, Line: []profile.Line{{Function: functions[2]}}}
	cpu := &profile.ValueType{Type: "cpu", Unit: "nanoseconds"}
	return &profile.Profile{
		SampleType: []*profile.ValueType{cpu},
		PeriodType: cpu,
		Period:     10,
		TimeNanos:  7,
		Mapping:    []*profile.Mapping{m},
		Location:   []*profile.Location{leaf, root},
		Function:   functions,
		Sample: []*profile.Sample{{
			Location: []*profile.Location{leaf, root},
			Value:    []int64{30},
			Label:    map[string][]string{"span_id": {"00f067aa0ba902b7"}},
		}},
	}
}

func read(t *testing.T, content []byte) (string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "profile")
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	err := run([]string{path}, &out)
	return strings.TrimSpace(out.String()), err
}

func TestSaysWhatIsInAProfile(t *testing.T) {
	var file bytes.Buffer
	if err := known().Write(&file); err != nil {
		t.Fatal(err)
	}
	got, err := read(t, file.Bytes())
	want := `{"sample_types":[{"type":"cpu","unit":"nanoseconds"}],` +
		`"period_type":{"type":"cpu","unit":"nanoseconds"},"period":10,"time_nanos":7,"duration_nanos":0,` +
		`"comments":null,"mappings":[{"file":"/bin/a","build_id":"c0ffee","has_functions":true}],` +
		`"samples":[{"values":[30],"functions":["inlined","leaf","main"],` +
		`"labels":{"span_id":["00f067aa0ba902b7"]},"num_labels":null}]}`
	if err != nil || got != want {
		t.Fatalf("%v\ngot  %s\nwant %s", err, got, want)
	}
}

func TestRefusesWhatIsNoProfile(t *testing.T) {
	for _, content := range []string{"", "nonsense", "\x1f\x8b"} {
		if got, err := read(t, []byte(content)); err == nil {
			t.Errorf("%q was read as %s", content, got)
		}
	}
}
