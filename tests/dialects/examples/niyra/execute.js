async function niyraExecute(instruction, token) {
  const start = await fetch("https://api.niyra.ai/v1/public/execute", {
    method: "POST",
    headers: { Authorization: `Bearer ${token}`, "Content-Type": "application/json" },
    body: JSON.stringify({ instruction }),
  }).then((r) => r.json());

  if (start.terminal) return start.result;

  // Poll every 3s, give up after 10 minutes.
  for (let i = 0; i < 200; i++) {
    await new Promise((r) => setTimeout(r, 3000));
    const tick = await fetch(
      `https://api.niyra.ai/v1/public/tasks/${start.task_id}`,
      { headers: { Authorization: `Bearer ${token}` } }
    ).then((r) => r.json());
    if (tick.terminal) return tick.result;
  }
  throw new Error("Task did not terminate within 10 minutes");
}
