// Polling while the page is visible.

/**
 * Run `work` now and again `ms` after each run ends, except while the page is hidden.
 * Returns a function that stops it.
 */
export function every(ms, work) {
  let timer = 0;
  let isOver = false;
  let isRunning = false;

  async function run() {
    clearTimeout(timer);
    if (isOver || isRunning || document.hidden) return;
    isRunning = true;
    const waitMs = await work().then(() => 0, backoff);
    isRunning = false;
    if (!isOver) timer = setTimeout(run, Math.max(ms, waitMs));
  }

  document.addEventListener("visibilitychange", run);
  run();
  return () => {
    isOver = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", run);
  };
}

/** Milliseconds to back off after an error: longer if the key is refused. */
function backoff(problem) {
  const isRefused = problem.status === 401 || problem.status === 403;
  return Math.max(isRefused ? 30_000 : 5000, (problem.retryAfterS ?? 0) * 1000);
}
