import os, time, requests

BASE = "https://agents.nanonets.com"
HEADERS = {"Authorization": f"Bearer {os.environ['NANONETS_API_KEY']}"}
TERMINAL = {"completed", "failed", "stopped"}

def wait_for_task(task_id: str, timeout_s: int = 600) -> dict:
    deadline = time.time() + timeout_s
    delay = 1.0
    while time.time() < deadline:
        r = requests.get(f"{BASE}/api/v1/tasks/{task_id}", headers=HEADERS, timeout=10)
        r.raise_for_status()
        body = r.json()
        if body["status"] in TERMINAL:
            return body
        if body["status"] == "waiting_for_input":
            raise RuntimeError(f"Task {task_id} needs a reply — see /interactive-tasks")
        time.sleep(delay)
        delay = min(delay * 1.5, 10.0)  # gentle exponential backoff, cap at 10s
    raise TimeoutError(f"Task {task_id} did not finish within {timeout_s}s")

final = wait_for_task("f1c2a3b4-...")
if final["status"] == "completed":
    summary = requests.get(
        f"{BASE}/api/v1/tasks/{final['task_id']}/summary", headers=HEADERS
    ).json()
    print(summary)
