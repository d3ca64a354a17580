package experiment

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"qmigrate/internal/atomicfile"
)

// Schema is the version of experiment.json's shape.
const Schema = "qmigrate/experiment/1"

// State is experiment.json in the folder: what the trials there are trials of. The records say which of them are done.
type State struct {
	Schema    string    `json:"schema"`
	Name      string    `json:"name"`
	Title     string    `json:"title,omitempty"`
	Scale     string    `json:"scale,omitempty"`
	File      string    `json:"file"`    // as it was given; its text is experiment.toml beside this
	Command   string    `json:"command"` // that made it
	StartedAt time.Time `json:"started_at"`
	Seed      int64     `json:"seed"` // of the order
	Hash      string    `json:"hash"` // of the file's meaning
	Boot      string    `json:"boot"`
	Repeats   int       `json:"repeats"`
	Shrink    int64     `json:"shrink,omitempty"`
	Cells     int       `json:"cells"`
	Trials    int       `json:"trials"`
	Sweeps    []*Sweep  `json:"sweeps"`
	Figures   []Figure  `json:"figures,omitempty"`
	Without   []string  `json:"without,omitempty"`  // what of the study the file does not do
	LeftOut   []string  `json:"left_out,omitempty"` // what of the file is not done on this host
}

func statePath(dir string) string { return filepath.Join(dir, "experiment.json") }

// ReadState reads a folder's experiment.json; nil if there is none.
func ReadState(dir string) (*State, error) {
	b, err := os.ReadFile(statePath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read experiment: %w", err)
	}
	s := new(State)
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("read %s: %w", statePath(dir), err)
	}
	if s.Schema != Schema {
		return nil, fmt.Errorf("read %s: schema is %q, this program reads %q", statePath(dir), s.Schema, Schema)
	}
	return s, nil
}

// resume compares the experiment with what the folder holds trials of. What it holds decides the seed; the rest has to
// be the same.
func (e *Experiment) resume(dir string) (seed int64, held *State, err error) {
	held, err = ReadState(dir)
	if err != nil {
		return 0, nil, err
	}
	if held == nil {
		if e.Seed != nil {
			return *e.Seed, nil, nil
		}
		return rand.Int64N(1 << 53), nil, nil // exact in any reader of JSON
	}
	other := "give another folder, or delete this one"
	switch {
	case held.Name != e.Name || held.Scale != e.Scale:
		return 0, nil, fmt.Errorf("%s holds trials of experiment %s%s, this is %s%s: %s", dir, held.Name,
			scaleText(held.Scale), e.Name, scaleText(e.Scale), other)
	case e.Seed != nil && *e.Seed != held.Seed:
		return 0, nil, fmt.Errorf("%s holds trials in an order drawn from seed %d, this is %d: leave the seed out, or %s",
			dir, held.Seed, *e.Seed, other)
	case held.Hash != e.hash:
		return 0, nil, fmt.Errorf("%s has changed since %s, from which %s holds trials (its text is in experiment.toml "+
			"there; repeats and scale count too): %s", e.File, held.StartedAt.Local().Format("2006-01-02 15:04"), dir, other)
	}
	return held.Seed, held, nil
}

func scaleText(scale string) string {
	if scale == "" {
		return ""
	}
	return " at scale " + scale
}

// keep writes experiment.json and experiment.toml, each whole or not at all.
func (e *Experiment) keep(dir, command string, seed int64, trials int, held *State) error {
	s := State{Schema: Schema, Name: e.Name, Title: e.Title, Scale: e.Scale, File: e.File, Command: command,
		StartedAt: time.Now().Round(0), Seed: seed, Hash: e.hash, Boot: e.Boot,
		Repeats: e.Repeats, Cells: len(e.Cells), Trials: trials, Sweeps: e.Sweeps, Figures: e.Figures, Without: e.Without,
		LeftOut: e.LeftOut}
	if e.Shrink > 1 {
		s.Shrink = e.Shrink
	}
	if held != nil {
		s.StartedAt = held.StartedAt
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "\t")
	if err := enc.Encode(s); err != nil {
		return err
	}
	err := atomicfile.Write(filepath.Join(dir, "experiment.toml"), e.Text, 0o644)
	if err == nil {
		err = atomicfile.Write(statePath(dir), b.Bytes(), 0o644)
	}
	if err != nil {
		return fmt.Errorf("keep experiment: %w", err)
	}
	return nil
}
