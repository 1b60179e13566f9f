// Work that is done again and again while somebody looks.

/** Run `work` now and `ms` after it ended, not while the page is hidden. Returns what stops it. */
export function every(ms, work) {
  let timer = 0;
  let isOver = false;
  let isRunning = false;

  async function run() {
    clearTimeout(timer);
    if (isOver || isRunning || document.hidden) return;
    isRunning = true;
    const waitMs = await work().then(() => 0, patience);
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

/** A server that is away, or has enough of this key, is asked less often; a new key starts anew. */
function patience(problem) {
  const isRefused = problem.status === 401 || problem.status === 403;
  return Math.max(isRefused ? 30_000 : 5000, (problem.retryAfterS ?? 0) * 1000);
}
