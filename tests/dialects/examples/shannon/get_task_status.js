const axios = require('axios');
async function getTaskStatus(taskId) {
try {
const response = await axios.get(
`http://localhost:8080/api/v1/tasks/${taskId}`,
{
headers: {
'X-API-Key': 'sk_test_123456'
}
}
);
const status = response.data;
console.log('Status:', status.status);
if (status.status === 'TASK_STATUS_COMPLETED') {
console.log('Result:', status.result);
} else if (status.status === 'TASK_STATUS_FAILED') {
console.error('Error:', status.error);
}
return status;
} catch (error) {
if (error.response?.status === 404) {
console.error('Task not found');
} else {
console.error('Error:', error.response?.data || error.message);
}
throw error;
}
}
getTaskStatus('task_abc123');
