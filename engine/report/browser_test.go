package report

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"qmigrate/engine/record"
	"qmigrate/engine/record/recordtest"
	"qmigrate/engine/report/figure"
)

// browserLimit bounds all that a test does with a browser.
const browserLimit = 5 * time.Minute

// pollLimit bounds one wait for the page.
const pollLimit = 2 * time.Minute

// chromium is the browser's program. Where there is none the test is skipped, unless QMIGRATE_REQUIRE_CHROMIUM=1 promises one.
func chromium(t testing.TB) string {
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	if os.Getenv("QMIGRATE_REQUIRE_CHROMIUM") == "1" {
		t.Fatal("QMIGRATE_REQUIRE_CHROMIUM=1, and there is no chromium in PATH: apt-get install chromium")
	}
	t.Skip("no chromium in PATH (Debian's package chromium): the page was not opened")
	return ""
}

// visit is one browser with one page, and what it complained of.
type visit struct {
	ctx context.Context
	mu  sync.Mutex
	bad []string // console errors, exceptions, and requests for anything but the page itself
}

// open starts a browser with an empty profile; it ends with the test.
func open(t testing.TB, flags ...chromedp.ExecAllocatorOption) *visit {
	ctx, cancel := context.WithTimeout(context.Background(), browserLimit)
	t.Cleanup(cancel)
	options := append([]chromedp.ExecAllocatorOption{
		chromedp.ExecPath(chromium(t)), chromedp.UserDataDir(t.TempDir()), chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck,
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true), chromedp.Flag("disable-default-apps", true), chromedp.Flag("disable-extensions", true), chromedp.Flag("hide-scrollbars", true),
	}, flags...)
	allocator, stop := chromedp.NewExecAllocator(ctx, options...)
	t.Cleanup(stop)
	v := &visit{}
	var end context.CancelFunc
	v.ctx, end = chromedp.NewContext(allocator)
	t.Cleanup(end)
	note := func(format string, args ...any) {
		v.mu.Lock()
		defer v.mu.Unlock()
		v.bad = append(v.bad, fmt.Sprintf(format, args...))
	}
	err := chromedp.Listen(v.ctx, func(e any) { // which starts the browser
		switch e := e.(type) {
		case *runtime.EventExceptionThrown:
			note("exception: %s %s", e.ExceptionDetails.Text, e.ExceptionDetails.Exception.Description)
		case *runtime.EventConsoleAPICalled:
			if slices.Contains([]string{"error", "warning", "assert"}, string(e.Type)) {
				note("console.%s: %s", e.Type, e.Args[0].Value)
			}
		case *log.EventEntryAdded:
			if slices.Contains([]string{"error", "warning"}, string(e.Entry.Level)) {
				note("%s: %s", e.Entry.Source, e.Entry.Text)
			}
		case *network.EventRequestWillBeSent:
			if url := e.Request.URL; !strings.HasPrefix(url, "data:") && !(strings.HasPrefix(url, "file:") && strings.HasSuffix(url, "/report.html")) {
				note("request: %s", url)
			}
		}
	})
	if err == nil {
		_, err = chromedp.Call(v.ctx, network.Enable, network.EnableParams{})
	}
	if err != nil {
		t.Fatalf("start chromium: %v", err)
	}
	return v
}

// load opens the page and waits until all of its figures are drawn.
func (v *visit) load(t testing.TB, file string, figures int) {
	t.Helper()
	drawn := ""
	err := chromedp.Do(v.ctx, chromedp.Navigate("file://"+file))
	if err == nil {
		drawn, err = chromedp.Run(v.ctx, chromedp.Poll[string](`document.documentElement.dataset.drawn`, chromedp.WithPollingTimeout(pollLimit)))
	}
	if err != nil || drawn != fmt.Sprint(figures) {
		t.Fatalf("%q of %d figures drawn: %v; %q", drawn, figures, err, v.complaints())
	}
}

func (v *visit) complaints() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.bad
}

// blank are the panels that show nothing: no canvas, or one in which all pixels within the axes have one colour. A panel has three colours at least: ground, grid or frame, and a curve.
const blank = `[...document.querySelectorAll("figure[data-figure]")].flatMap(f => {
  const all = [...f.querySelectorAll("canvas")];
  if (all.length === 0) return [f.id + ": no canvas"];
  return all.flatMap((c, i) => {
    if (c.width === 0 || c.height === 0) return [f.id + " " + i + ": empty"];
    const d = new Uint32Array(c.getContext("2d").getImageData(0, 0, c.width, c.height).data.buffer);
    const wanted = [...f.querySelectorAll(".legend svg")].map(s => getComputedStyle(s).color.match(/\d+/g).map(Number));
    const seen = new Set(d);
    const has = wanted.some(([r, g, b]) => seen.has(((255 << 24) | (b << 16) | (g << 8) | r) >>> 0));
    return seen.size < 3 || !has ? [f.id + " " + i + ": " + seen.size + " colours, a curve's own among them: " + has] : [];
  });
})`

// TestPage opens the report of 1,000 records and of a few real ones: nothing is said on the console, nothing leaves the page, every figure is drawn at both widths, in light, dark and print.
func TestPage(t *testing.T) {
	chromium(t)
	dir := synthetic(t, 1000)
	r := write(t, dir)
	file := filepath.Join(dir, "report.html")
	v := open(t)
	for _, view := range []struct {
		name   string
		width  int64
		scheme string
	}{{"wide", 1280, "light"}, {"narrow", 390, "light"}, {"dark", 1280, "dark"}, {"narrow-dark", 390, "dark"}} {
		if err := chromedp.Do(v.ctx, chromedp.EmulateViewport(view.width, 900)); err != nil {
			t.Fatal(err)
		}
		scheme := emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: view.scheme}}}
		if _, err := chromedp.Call(v.ctx, emulation.SetEmulatedMedia, scheme); err != nil {
			t.Fatal(err)
		}
		v.load(t, file, len(r.Figures))
		empty := evaluate[[]string](t, v, blank)
		ground := evaluate[string](t, v, `getComputedStyle(document.documentElement).backgroundColor`)
		wide := evaluate[int64](t, v, `document.documentElement.scrollWidth`)
		if len(empty) > 0 {
			t.Errorf("%s: not drawn: %q", view.name, empty)
		}
		if want := map[string]string{"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}[view.scheme]; ground != want {
			t.Errorf("%s: the ground is %s, not %s", view.name, ground, want)
		}
		if wide > view.width {
			t.Errorf("%s: the page is %d px wide in a window of %d: it has to be scrolled sideways", view.name, wide, view.width)
		}
		if beyond := evaluate[float64](t, v, `(e => e.scrollWidth - e.clientWidth)(document.querySelector("#environment").closest("section").querySelector(".scroll"))`); beyond > 0 {
			t.Errorf("%s: %v px of the values of the environment are to be scrolled to", view.name, beyond)
		}
		v.screenshot(t, view.name)
	}
	v.keyboard(t)
	v.print(t)
	v.anatomy(t)
	if bad := v.complaints(); len(bad) > 0 {
		t.Errorf("the page complained: %q", bad)
	}
}

// anatomy opens a page of downtimes that were taken apart: bars in lanes and distributions are drawn, and the cursor reads them.
func (v *visit) anatomy(t *testing.T) {
	all, dir := apart(8, recordtest.Stamped), t.TempDir()
	for _, m := range all {
		m.Passes = []record.Pass{{Pass: 1, Duration: time.Second, Transferred: record.Of(int64(1 << 20))}}
		m.Pending = []record.Pending{{PostCopy: 64 << 20}, {T: time.Second, StopCopy: 1 << 20, PostCopy: 2 << 20}}
	}
	r := built(t, all)
	if err := r.Write(dir); err != nil {
		t.Fatal(err)
	}
	for _, view := range []struct {
		name   string
		width  int64
		scheme string
	}{{"anatomy", 1280, "light"}, {"anatomy-narrow-dark", 390, "dark"}} {
		if err := chromedp.Do(v.ctx, chromedp.EmulateViewport(view.width, 900)); err != nil {
			t.Fatal(err)
		}
		scheme := emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: view.scheme}}}
		if _, err := chromedp.Call(v.ctx, emulation.SetEmulatedMedia, scheme); err != nil {
			t.Fatal(err)
		}
		v.load(t, filepath.Join(dir, "report.html"), len(r.Figures))
		if empty := evaluate[[]string](t, v, blank); len(empty) > 0 {
			t.Errorf("%s: not drawn: %q", view.name, empty)
		}
		v.screenshot(t, view.name)
	}
	key := keys(r, "downtime-parts-pre-copy")[0]
	evaluate[any](t, v, fmt.Sprintf(`document.querySelector("#%s .plot").focus()`, key))
	for range 3 {
		if err := chromedp.Do(v.ctx, chromedp.KeyEvent(kb.ArrowRight)); err != nil {
			t.Fatal(err)
		}
	}
	script := fmt.Sprintf(`(s => s.includes("source: ") && s)(document.querySelector("#%s .read").textContent)`, key)
	read, err := chromedp.Run(v.ctx, chromedp.Poll[string](script, chromedp.WithPollingTimeout(pollLimit)))
	if err != nil || !strings.Contains(read, "ram-save") {
		t.Errorf("by keyboard: the cursor reads %q: %v", read, err)
	}
}

// screenshot leaves a picture where QMIGRATE_SCREENSHOTS names a folder.
func (v *visit) screenshot(t testing.TB, name string) {
	dir := os.Getenv("QMIGRATE_SCREENSHOTS")
	if dir == "" {
		return
	}
	picture, err := chromedp.Run(v.ctx, chromedp.FullScreenshot(100))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".png"), picture, 0o644); err != nil {
		t.Fatal(err)
	}
}

// keyboard moves the cursor of the first figure and hides its first curve, without a pointer.
func (v *visit) keyboard(t *testing.T) {
	evaluate[any](t, v, `document.querySelector("figure .plot").focus()`)
	if err := chromedp.Do(v.ctx, chromedp.KeyEvent(kb.ArrowRight)); err != nil {
		t.Fatal(err)
	}
	read, err := chromedp.Run(v.ctx, chromedp.Poll[string](`document.querySelector("figure .read").textContent.trim()`, chromedp.WithPollingTimeout(pollLimit)))
	if err != nil || !strings.Contains(read, ": ") {
		t.Errorf("by keyboard: the cursor reads %q: %v", read, err)
	}
	evaluate[any](t, v, `document.querySelector("figure .legend button").focus()`)
	if err := chromedp.Do(v.ctx, chromedp.KeyEvent(kb.Enter)); err != nil {
		t.Fatal(err)
	}
	hidden, err := chromedp.Run(v.ctx, chromedp.Poll[string](`document.querySelector("figure .legend button[aria-pressed=false]")?.dataset.curve`, chromedp.WithPollingTimeout(pollLimit)))
	if err != nil || hidden == "" {
		t.Errorf("by keyboard: the hidden curve is %q: %v", hidden, err)
	}
}

// print makes a PDF of the dark page: it is drawn in the colours of the light one, two figures of one panel on a sheet, and stands as before afterwards.
func (v *visit) print(t *testing.T) {
	const heights = `[...document.querySelectorAll("figure canvas")].map(c => c.height).join()`
	evaluate[any](t, v, `addEventListener("beforeprint", () => { document.documentElement.dataset.printed = getComputedStyle(document.documentElement).getPropertyValue("--ground") })`)
	if err := chromedp.Do(v.ctx, chromedp.EmulateViewport(1280, 900)); err != nil {
		t.Fatal(err)
	}
	before := evaluate[string](t, v, heights)
	pdf, err := chromedp.Run(v.ctx, chromedp.PrintToPDF(chromedp.PDFPrintBackground()))
	ground := evaluate[string](t, v, `document.documentElement.dataset.printed`)
	if err != nil || len(pdf) < 10_000 || ground != figure.LightGround {
		t.Errorf("print: %d bytes, on %q: %v", len(pdf), ground, err)
	}
	if after := evaluate[string](t, v, heights); after != before {
		t.Errorf("print: the figures were %s high, and are %s after it", before, after)
	}
	const sheetWidth, sheetHeight = 739, 980 // letter paper less the browser's margins, CSS pixels
	err = chromedp.Do(v.ctx, chromedp.EmulateViewport(sheetWidth, sheetHeight))
	if err == nil {
		_, err = chromedp.Call(v.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Media: "print"})
	}
	least := evaluate[float64](t, v, `dispatchEvent(new Event("beforeprint")), Math.min(...[...document.querySelectorAll("figure[data-figure]")].map(f => f.offsetHeight))`)
	if evaluate[any](t, v, `dispatchEvent(new Event("afterprint"))`); err != nil || least > sheetHeight/2 {
		t.Errorf("print: the smallest figure is %v px high, more than half a sheet of %d: %v", least, sheetHeight, err)
	}
	if dir := os.Getenv("QMIGRATE_SCREENSHOTS"); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, "print.pdf"), pdf, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func evaluate[T any](t testing.TB, v *visit, script string) T {
	t.Helper()
	out, err := chromedp.Run(v.ctx, chromedp.Evaluate[T](script))
	if err != nil {
		t.Fatalf("%s: %v", script, err)
	}
	return out
}
