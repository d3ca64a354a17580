package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/chromedp/chromedp"

	"qmigrate/engine/record/recordtest"
)

// reportRecords is how many records a report has to take without keeping a person waiting.
const reportRecords = 1000

// report is the time of `qmigrate report` on many records, and of its page in a browser until it answers.
func (b *bench) report(ctx context.Context, r *Result) error {
	dir := filepath.Join(b.dir, "many")
	if err := recordtest.WriteFolder(dir, recordtest.Synthetic(1, reportRecords)); err != nil {
		return err
	}
	var seconds, peak []float64
	for range b.pick(2, 7) {
		c := exec.CommandContext(ctx, b.qmigrate, "report", "--quiet", dir)
		c.Stderr = os.Stderr
		begin := time.Now()
		if err := c.Run(); err != nil {
			return fmt.Errorf("qmigrate report: %w", err)
		}
		seconds = append(seconds, time.Since(begin).Seconds())
	}
	r.add(fmt.Sprintf("`qmigrate report` of %d records", reportRecords), "s", "< 5", ofMedian(seconds))
	page := filepath.Join(dir, "report.html")
	if s, err := os.Stat(page); err == nil {
		peak = append(peak, float64(s.Size())/(1<<20))
	}
	r.add("its page", "MiB", "", ofMedian(peak))
	browser, err := exec.LookPath("chromium")
	if err != nil {
		r.note("no chromium in PATH: the page was not opened")
		return nil
	}
	var answers, drawn []float64
	for range b.pick(2, 7) {
		a, d, err := visit(ctx, browser, page)
		if err != nil {
			return fmt.Errorf("open the page: %w", err)
		}
		answers, drawn = append(answers, a), append(drawn, d)
	}
	r.add("its page in Chromium: from navigation until it answers", "s", "< 2", ofMedian(answers))
	r.add("from navigation until every figure is drawn", "s", "< 2", ofMedian(drawn))
	r.note("headless, without a graphics processor, 1280 x 900; a new process and profile each time; the page answers " +
		"when its first frame has been shown and its script runs nothing")
	return nil
}

// visit opens the page in a new browser and returns the times, in seconds by the page's own clock, at which it answers
// and at which all is drawn.
func visit(ctx context.Context, browser, page string) (answers, drawn float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	profile, err := os.MkdirTemp("", "qmb-profile")
	if err != nil {
		return 0, 0, err
	}
	defer os.RemoveAll(profile)
	flags := []chromedp.ExecAllocatorOption{chromedp.ExecPath(browser), chromedp.UserDataDir(profile), chromedp.Headless,
		chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun}
	for _, name := range []string{"disable-quic", "disable-background-networking", "disable-component-update",
		"disable-sync"} {
		flags = append(flags, chromedp.Flag(name, true))
	}
	ctx, stop := chromedp.NewExecAllocator(ctx, flags...)
	defer stop()
	ctx, end := chromedp.NewContext(ctx)
	defer end()
	if err := chromedp.Do(ctx, chromedp.EmulateViewport(1280, 900), chromedp.Navigate("file://"+page)); err != nil {
		return 0, 0, err
	}
	var times [2]float64
	for i, name := range []string{"drawnMs", "interactiveMs"} {
		text, err := chromedp.Run(ctx, chromedp.Poll[string]("document.documentElement.dataset."+name))
		if err != nil {
			return 0, 0, err
		}
		ms, err := strconv.ParseFloat(text, 64)
		if err != nil {
			return 0, 0, err
		}
		times[i] = ms / 1000
	}
	return times[1], times[0], nil
}
