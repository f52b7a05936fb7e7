//! How long something takes, in nanoseconds of the thread's CPU time.

const ROUNDS: usize = 15;
const TIMES: u32 = 200_000;

/// The median, over the rounds, of the time that `work` takes.
pub(crate) fn measure(mut work: impl FnMut()) -> f64 {
    let mut round = || {
        let start = thread_cpu_ns();
        for _ in 0..TIMES {
            work();
        }
        (thread_cpu_ns() - start) / f64::from(TIMES)
    };
    round();
    let mut rounds: Vec<f64> = (0..ROUNDS).map(|_| round()).collect();
    rounds.sort_by(f64::total_cmp);
    rounds[ROUNDS / 2]
}

/// The thread's own clock: what other programs do meanwhile does not count.
#[expect(clippy::cast_precision_loss, reason = "a program does not run for 2^52 nanoseconds")]
fn thread_cpu_ns() -> f64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes to the structure that it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut now) };
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}
