/*
 * A realtime clock that is wrong on purpose, for programs that it is preloaded into (LD_PRELOAD). It reads the same
 * formula from QMIGRATE_HELPER_CLOCK as qmigrate's helper does (hostnet/host/drift.go), so that a host shows one clock:
 * at the instant t of the kernel's clock
 *
 *	t + OFFSET_NS + PPM (t - FROM_NS) / 1e6, and from STEP_NS on STEP_BY_NS more.
 *
 * Build: gcc -shared -fPIC -O2 -nostdlib -ffreestanding -fno-builtin -o clock.so clock.c. It needs no C library's headers,
 * and any version of that library loads it: QEMUs come with several. For x86-64.
 */
#include <stdint.h>

struct timespec {
	int64_t tv_sec, tv_nsec;
};

struct timeval {
	int64_t tv_sec, tv_usec;
};

#define CLOCK_REALTIME 0
#define CLOCK_REALTIME_COARSE 5
#define SYS_clock_gettime 228L

#define RTLD_NEXT ((void *)-1)

char *getenv(const char *name);
double strtod(const char *s, char **end);
void *dlvsym(void *handle, const char *name, const char *version);

static int64_t offset, from, step, by;
static double ppm;
static int wrong;

static const char *number(const char *s, int64_t *n)
{
	int64_t v = 0, sign = 1;

	if (*s == ',')
		s++;
	if (*s == '-') {
		sign = -1;
		s++;
	}
	for (; *s >= '0' && *s <= '9'; s++)
		v = v * 10 + (*s - '0');
	*n = sign * v;
	return s;
}

__attribute__((constructor)) static void begin(void)
{
	const char *s = getenv("QMIGRATE_HELPER_CLOCK");
	char *end;

	if (!s || !*s)
		return;
	s = number(s, &offset);
	if (*s != ',')
		return;
	ppm = strtod(s + 1, &end);
	if (*end != ',')
		return;
	s = number(end, &from);
	step = INT64_MAX;
	if (*s == ',') {
		s = number(s, &step);
		s = number(s, &by);
	}
	wrong = 1;
}

static long kernel(int id, struct timespec *t)
{
	long r;

	__asm__ volatile("syscall" : "=a"(r) : "0"(SYS_clock_gettime), "D"((long)id), "S"(t) : "rcx", "r11", "memory");
	return r;
}

int clock_gettime(int id, struct timespec *t)
{
	long r = kernel(id, t);
	int64_t now, shown;

	if (r < 0)
		return -1;
	if ((id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE) && wrong) {
		now = t->tv_sec * INT64_C(1000000000) + t->tv_nsec;
		shown = now + offset + (int64_t)(ppm / 1e6 * (double)(now - from));
		if (now >= step)
			shown += by;
		t->tv_sec = shown / 1000000000;
		t->tv_nsec = shown % 1000000000;
	}
	return 0;
}

int gettimeofday(struct timeval *v, void *zone)
{
	struct timespec t;

	(void)zone;
	clock_gettime(CLOCK_REALTIME, &t);
	v->tv_sec = t.tv_sec;
	v->tv_usec = t.tv_nsec / 1000;
	return 0;
}

int64_t time(int64_t *into)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	if (into)
		*into = t.tv_sec;
	return t.tv_sec;
}

/*
 * Waits until an instant of the realtime clock: the kernel has the right one. QEMU 7.2 waits so. An instant of the
 * monotonic clock, which counts from the boot, is left as it is: it is not within a day of the realtime clock.
 */
int pthread_cond_timedwait(void *cond, void *mutex, const struct timespec *until)
{
	static int (*next)(void *, void *, const struct timespec *);
	struct timespec now, right = *until;
	int64_t right_now, at, ahead, off;

	if (!next)
		next = (int (*)(void *, void *, const struct timespec *))dlvsym(RTLD_NEXT, "pthread_cond_timedwait", "GLIBC_2.3.2");
	kernel(CLOCK_REALTIME, &now);
	right_now = now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
	clock_gettime(CLOCK_REALTIME, &now);
	ahead = now.tv_sec * INT64_C(1000000000) + now.tv_nsec - right_now;
	off = until->tv_sec - now.tv_sec;
	if (off > -86400 && off < 86400) {
		at = until->tv_sec * INT64_C(1000000000) + until->tv_nsec - ahead;
		right.tv_sec = at / 1000000000;
		right.tv_nsec = at % 1000000000;
	}
	return next(cond, mutex, &right);
}
