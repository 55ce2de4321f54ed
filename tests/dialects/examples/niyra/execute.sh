curl -X POST https://api.niyra.ai/v1/public/execute \
  -H "Authorization: Bearer pat_…" \
  -H "Content-Type: application/json" \
  -d '{
    "instruction": "Summarize the Linear tickets tagged P0 this week."
  }'
