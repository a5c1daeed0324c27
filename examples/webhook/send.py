"""Send one signed request to a hook: `SECRET=... URL=http://127.0.0.1:8650 python3 send.py` (docs/channels.md)."""

import hashlib
import hmac
import json
import os
import time
import urllib.request

body = json.dumps({"text": "deploy finished"}).encode()
timestamp, path, message_id = str(int(time.time())), "/hooks/deploy", "deploy-4712"
signed = f"{timestamp}\n{path}\n{message_id}\n".encode() + body
digest = hmac.new(os.environ["SECRET"].encode(), signed, hashlib.sha256).hexdigest()
request = urllib.request.Request(
    os.environ["URL"] + path,
    data=body,
    headers={
        "Content-Type": "application/json",
        "X-Clawbus-Timestamp": timestamp,
        "X-Clawbus-Signature": "sha256=" + digest,
        "X-Clawbus-Id": message_id,
    },
)
with urllib.request.urlopen(request, timeout=10) as response:
    print(response.read().decode())
