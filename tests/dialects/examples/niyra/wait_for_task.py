import os, time, requests

def wait_for_task(task_id, token, timeout=600, interval=3):
    deadline = time.time() + timeout
    while time.time() < deadline:
        r = requests.get(
            f"https://api.niyra.ai/v1/public/tasks/{task_id}",
            headers={"Authorization": f"Bearer {token}"},
        )
        data = r.json()
        if data["terminal"]:
            if data["status"] == "complete":
                return data["result"]
            raise RuntimeError(f"task {data['status']}: {data.get('error')}")
        time.sleep(interval)
    raise TimeoutError("polled past timeout")
