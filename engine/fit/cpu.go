package fit

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"qmigrate/engine/facts"
)

// SameModel tells whether two names are of one model: SPEC-v1 is SPEC to a machine type that defaults to it.
func SameModel(c, d facts.CPU) bool {
	plain := func(name string) string {
		base, version, ok := strings.Cut(name, "-v")
		if ok && len(version) == 1 && version[0] >= '0' && version[0] <= '9' {
			return base
		}
		return name
	}
	return plain(c.Model()) == plain(d.Model())
}

// lacks are the features of c that d has not, by the names that -cpu takes.
func lacks(c, d facts.CPU) (names []string) {
	if c.Features == nil || d.Features == nil {
		return nil
	}
	order := func(a, b facts.FeatureWord) int {
		return strings.Compare(fmt.Sprintf("%08x %08x %s", a.EAX, a.ECX, a.Register),
			fmt.Sprintf("%08x %08x %s", b.EAX, b.ECX, b.Register))
	}
	for _, word := range slices.SortedFunc(maps.Keys(c.Features), order) {
		if word.EAX == 0xD && word.ECX == 0 {
			continue // the sizes of what XSAVE saves: they follow from the others
		}
		known := strings.Fields(featureNames[word])
		for bit := range 32 {
			switch {
			case word.EAX == 0x80000001 && word.Register == "EDX" && amdCopies>>bit&1 == 1:
			case c.Features[word]&^d.Features[word]>>bit&1 == 0:
			case bit < len(known) && known[bit] != "-":
				names = append(names, known[bit])
			default:
				names = append(names, fmt.Sprintf("CPUID[%Xh,%d].%s bit %d", word.EAX, word.ECX, word.Register, bit))
			}
		}
	}
	return slices.Compact(names)
}

// amdCopies are the bits of 80000001h EDX in which AMD's CPUs repeat those of 1h EDX. Source: AMD64 Architecture
// Programmer's Manual, volume 3.
const amdCopies = 0x0183f3ff

// compareCPU finds features that a running guest may be using and would lose. Nothing of the stream says which they
// were: QEMU loads it, and the guest dies of an invalid instruction some time later.
func compareCPU(src, dst *facts.Facts, refuse, doubt func(problem, mend string)) {
	a, b := src.CPU, dst.CPU
	if lost := lacks(a, b); len(lost) > 0 {
		mend := fmt.Sprintf("start the destination with %s, on a host and an accelerator that can give them", cpuOption(a))
		if a.Model() == "max" || a.Model() == "host" {
			mend = fmt.Sprintf("-cpu %s is what a host, an accelerator and a version of QEMU can do: choose a "+
				"destination that can do these, or start the guest anew with a named model", a.Model())
		}
		refuse("the destination's CPU lacks what the guest sees on the source: "+list(lost), mend)
	}
	if gained := lacks(b, a); len(gained) > 0 {
		doubt("the destination's CPU has what the guest does not see on the source: "+list(gained),
			fmt.Sprintf("the guest may find it after its next start; %s on the destination avoids it", cpuOption(a)))
	}
	differ := ""
	for _, name := range slices.Sorted(maps.Keys(a.Identity)) {
		if there, ok := b.Identity[name]; ok && there != a.Identity[name] {
			differ += fmt.Sprintf(", %s %s and %s", name, a.Identity[name], there)
		}
	}
	switch {
	case differ != "":
		refuse(fmt.Sprintf("CPU models differ: source %s, destination %s%s", a.Model(), b.Model(), differ),
			"start the destination with "+cpuOption(a))
	case !SameModel(a, b) && a.Type != "" && b.Type != "":
		doubt(fmt.Sprintf("CPU models differ: source %s, destination %s", a.Model(), b.Model()),
			"start the destination with "+cpuOption(a))
	}
	if src.Accelerator != dst.Accelerator {
		doubt(fmt.Sprintf("accelerators differ: source %s, destination %s: QEMU's own tests have no such pair",
			src.Accelerator, dst.Accelerator),
			fmt.Sprintf("start the destination with -accel %s if its host can do that", src.Accelerator))
	}
}

// cpuOption is how a destination gets this CPU.
func cpuOption(c facts.CPU) string {
	if c.Model() == "" {
		return "the source's -cpu"
	}
	return "the source's -cpu (model " + c.Model() + " and the same flags)"
}

// list is names in one line: the first of many.
func list(names []string) string {
	const most = 12
	if len(names) > most+1 {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
	}
	return strings.Join(names, ", ")
}

// featureNames names the bits of a word from bit 0 on; "-" has no name. Found by switching on each property of a CPU by
// itself, on 7.2.22 and 10.0.2, and looking which bit it sets (feature-words, filtered-features); those of 40000001h
// are arch/x86/include/uapi/asm/kvm_para.h's.
var featureNames = map[facts.FeatureWord]string{
	{EAX: 0x1, ECX: 0, Register: "ECX"}: "pni pclmulqdq dtes64 monitor ds-cpl vmx smx est tm2 ssse3 cid - fma " +
		"cx16 xtpr pdcm - pcid dca sse4-1 sse4-2 x2apic movbe popcnt tsc-deadline aes xsave - avx f16c rdrand hypervisor",
	{EAX: 0x1, ECX: 0, Register: "EDX"}: "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat " +
		"pse36 pn clflush - ds acpi mmx fxsr sse sse2 ss ht tm ia64 pbe",
	{EAX: 0x6, ECX: 0, Register: "EAX"}: "- - arat",
	{EAX: 0x7, ECX: 0, Register: "EBX"}: "fsgsbase tsc-adjust sgx bmi1 hle avx2 fdp-excptn-only smep bmi2 erms " +
		"invpcid rtm - zero-fcs-fds mpx - avx512f avx512dq rdseed adx smap avx512ifma pcommit clflushopt clwb intel-pt " +
		"avx512pf avx512er avx512cd sha-ni avx512bw avx512vl",
	{EAX: 0x7, ECX: 0, Register: "ECX"}: "- avx512vbmi umip pku - waitpkg avx512vbmi2 - gfni vaes vpclmulqdq " +
		"avx512vnni avx512bitalg - avx512-vpopcntdq - la57 - - - - - rdpid - bus-lock-detect cldemote - movdiri movdir64b " +
		"- sgxlc pks",
	{EAX: 0x7, ECX: 0, Register: "EDX"}: "- - avx512-4vnniw avx512-4fmaps fsrm - - - avx512-vp2intersect - " +
		"md-clear - - - serialize - tsx-ldtrk - - arch-lbr - - amx-bf16 avx512-fp16 amx-tile amx-int8 spec-ctrl stibp " +
		"flush-l1d arch-capabilities core-capability ssbd",
	{EAX: 0x7, ECX: 1, Register: "EAX"}: "sha512 sm3 sm4 - avx-vnni avx512-bf16 - cmpccxadd - - fzrm fsrs fsrc - " +
		"- - - fred lkgs wrmsrns - amx-fp16 - avx-ifma - - lam",
	{EAX: 0x7, ECX: 1, Register: "EDX"}: "- - - - avx-vnni-int8 avx-ne-convert - - amx-complex - avx-vnni-int16 " +
		"- - - prefetchiti - - - - avx10",
	{EAX: 0x7, ECX: 2, Register: "EDX"}:  "intel-psfd ipred-ctrl rrsba-ctrl ddpd-u bhi-ctrl mcdt-no",
	{EAX: 0xD, ECX: 1, Register: "EAX"}:  "xsaveopt xsavec xgetbv1 xsaves xfd",
	{EAX: 0x12, ECX: 0, Register: "EAX"}: "sgx1 sgx2 - - - - - - - - - sgx-edeccssa",
	{EAX: 0x12, ECX: 0, Register: "EBX"}: "sgx-exinfo",
	{EAX: 0x12, ECX: 1, Register: "EAX"}: "- sgx-debug sgx-mode64 - sgx-provisionkey sgx-tokenkey - sgx-kss - - " +
		"sgx-aex-notify",
	{EAX: 0x14, ECX: 0, Register: "ECX"}: "- - - - - - - - - - - - - - - - - - - - - - - - - - - - - - - " +
		"intel-pt-lip",
	{EAX: 0x24, ECX: 0, Register: "EBX"}: "- - - - - - - - - - - - - - - - avx10-128 avx10-256 avx10-512",
	{EAX: 0x40000001, ECX: 0, Register: "EAX"}: "kvmclock kvm-nopiodelay kvm-mmu kvmclock kvm-asyncpf kvm-steal-time " +
		"kvm-pv-eoi kvm-pv-unhalt - kvm-pv-tlb-flush - kvm-pv-ipi kvm-poll-control kvm-pv-sched-yield kvm-asyncpf-int " +
		"kvm-msi-ext-dest-id - - - - - - - - kvmclock-stable-bit",
	{EAX: 0x40000001, ECX: 0, Register: "EDX"}: "kvm-hint-dedicated",
	{EAX: 0x80000001, ECX: 0, Register: "ECX"}: "lahf-lm cmp-legacy svm extapic cr8legacy abm sse4a misalignsse " +
		"3dnowprefetch osvw ibs xop skinit wdt - lwp fma4 tce - nodeid-msr - tbm topoext perfctr-core perfctr-nb",
	{EAX: 0x80000001, ECX: 0, Register: "EDX"}: "- - - - - - - - - - - syscall - - - - - - - - nx - mmxext - - fxsr-opt " +
		"pdpe1gb rdtscp - lm 3dnowext 3dnow",
	{EAX: 0x80000007, ECX: 0, Register: "EBX"}: "overflow-recov succor",
	{EAX: 0x80000007, ECX: 0, Register: "EDX"}: "- - - - - - - - invtsc",
	{EAX: 0x80000008, ECX: 0, Register: "EBX"}: "clzero - xsaveerptr - - - - - - wbnoinvd - - ibpb - ibrs amd-stibp - " +
		"stibp-always-on - - - - - - amd-ssbd virt-ssbd amd-no-ssb - amd-psfd",
	{EAX: 0x8000000A, ECX: 0, Register: "EDX"}: "npt lbrv svm-lock nrip-save tsc-scale vmcb-clean flushbyasid " +
		"decodeassists - - pause-filter - pfthreshold avic - v-vmsave-vmload vgif - - - - - - - - vnmi - - svme-addr-chk",
	{EAX: 0x80000021, ECX: 0, Register: "EAX"}: "no-nested-data-bp - lfence-always-serializing - - - null-sel-clr-base " +
		"- auto-ibrs - - - - - - - - - - - - - - - eraps - - sbpb ibpb-brtype srso-no srso-user-kernel-no",
	{EAX: 0x80000022, ECX: 0, Register: "EAX"}: "perfmon-v2",
	{EAX: 0xC0000001, ECX: 0, Register: "EDX"}: "- - xstore xstore-en - - xcrypt xcrypt-en ace2 ace2-en phe phe-en pmm pmm-en",
}
