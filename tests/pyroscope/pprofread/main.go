// Command pprofread reads a pprof file with Go's own pprof package and prints what it holds as
// JSON. It shares no code with the encoder under test: what it says is an independent opinion.
//
//	pprofread FILE
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/google/pprof/profile"
)

// No profile that a test writes is larger, compressed or not.
const maxBytes = 256 << 20

type valueType struct {
	Type string `json:"type"`
	Unit string `json:"unit"`
}

type sample struct {
	Values []int64 `json:"values"`
	// Leaf first. A location with inlined calls gives several, innermost first.
	Functions []string            `json:"functions"`
	Labels    map[string][]string `json:"labels"`
	NumLabels map[string][]int64  `json:"num_labels"`
}

type mapping struct {
	File         string `json:"file"`
	BuildID      string `json:"build_id"`
	HasFunctions bool   `json:"has_functions"`
}

type report struct {
	SampleTypes []valueType `json:"sample_types"`
	PeriodType  *valueType  `json:"period_type"`
	Period      int64       `json:"period"`
	TimeNanos   int64       `json:"time_nanos"`
	Duration    int64       `json:"duration_nanos"`
	Comments    []string    `json:"comments"`
	Mappings    []mapping   `json:"mappings"`
	Samples     []sample    `json:"samples"`
}

func main() {
	if err := run(os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "pprofread: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string, out io.Writer) error {
	if len(args) != 1 {
		return errors.New("usage: pprofread FILE")
	}
	file, err := os.Open(args[0])
	if err != nil {
		return err
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxBytes+1))
	if err != nil {
		return err
	}
	if len(data) > maxBytes {
		return fmt.Errorf("%s is larger than %d bytes", args[0], maxBytes)
	}
	parsed, err := profile.ParseData(data)
	if err != nil {
		return fmt.Errorf("%s: %w", args[0], err)
	}
	if err := parsed.CheckValid(); err != nil {
		return fmt.Errorf("%s is not valid: %w", args[0], err)
	}
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	return encoder.Encode(describe(parsed))
}

func describe(p *profile.Profile) report {
	r := report{
		Period:    p.Period,
		TimeNanos: p.TimeNanos,
		Duration:  p.DurationNanos,
		Comments:  p.Comments,
	}
	for _, t := range p.SampleType {
		r.SampleTypes = append(r.SampleTypes, valueType{t.Type, t.Unit})
	}
	if p.PeriodType != nil {
		r.PeriodType = &valueType{p.PeriodType.Type, p.PeriodType.Unit}
	}
	for _, m := range p.Mapping {
		r.Mappings = append(r.Mappings, mapping{m.File, m.BuildID, m.HasFunctions})
	}
	for _, s := range p.Sample {
		d := sample{Values: s.Value, Labels: s.Label, NumLabels: s.NumLabel}
		for _, location := range s.Location {
			for _, line := range location.Line {
				name := ""
				if line.Function != nil {
					name = line.Function.Name
				}
				d.Functions = append(d.Functions, name)
			}
		}
		r.Samples = append(r.Samples, d)
	}
	return r
}
