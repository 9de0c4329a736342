#!/usr/bin/env bash
# A run on the nodes of one Slurm allocation:
#   bash cluster/setup.sh gpu                                   (once, in a checkout that all nodes see)
#   sbatch cluster/slurm.sh jobs/recipes/qwen3_vl_4b.yaml /shared/runs/qwen3_vl_4b [--set NAME=VALUE ...]
# Edit the lines below: partition and time, nodes, and what each node has. A job that runs out of time is continued by the
# same command.
#SBATCH --job-name=vlgenrm
#SBATCH --partition=gpu
#SBATCH --time=24:00:00
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --exclusive
#SBATCH --output=%x-%j.log
set -Eeuo pipefail

recipe=${1:?usage: sbatch cluster/slurm.sh RECIPE RUN_FOLDER [options]}
run=${2:?usage: sbatch cluster/slurm.sh RECIPE RUN_FOLDER [options]}
shift 2
# Slurm runs a copy of this script, so that its own folder says nothing; sbatch was called in the checkout.
cd "$SLURM_SUBMIT_DIR"
# shellcheck disable=SC1091
source "${VLGENRM_VENV:-.venv}/bin/activate"
unset RAY_ADDRESS
export RAY_USAGE_STATS_ENABLED=0
# Whoever reaches Ray's ports can run commands. Nodes of other users may: demand a token.
RAY_AUTH_TOKEN=$(python -c "import secrets; print(secrets.token_hex(32))")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
head_ip=$(srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
# Two jobs may share a node.
port=$((10000 + SLURM_JOB_ID % 20000))
resources=("--num-cpus=$SLURM_CPUS_PER_TASK" "--num-gpus=${SLURM_GPUS_ON_NODE:-0}")

srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    ray start --head --block --node-ip-address="$head_ip" --port="$port" "${resources[@]}" &
for node in "${nodes[@]:1}"; do
    srun --overlap --nodes=1 --ntasks=1 --nodelist="$node" \
        ray start --block --address="$head_ip:$port" "${resources[@]}" &
done

wait_for_nodes='
import sys, time, ray
address, num_nodes = sys.argv[1], int(sys.argv[2])
deadline = time.monotonic() + 300
while True:
    try:
        ray.init(address=address, log_to_driver=False)
        break
    except ConnectionError as error:
        if time.monotonic() > deadline:
            sys.exit(f"no Ray head answers at {address}: {error}")
        time.sleep(2)
while (count := sum(node["Alive"] for node in ray.nodes())) < num_nodes:
    if time.monotonic() > deadline:
        sys.exit(f"{count} of {num_nodes} nodes joined the cluster; see the output of srun above")
    time.sleep(2)
'
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    python -c "$wait_for_nodes" "$head_ip:$port" "${#nodes[@]}"
srun --overlap --nodes=1 --ntasks=1 --nodelist="$head" \
    python jobs/train_reward.py --address="$head_ip:$port" --config "$recipe" --run "$run" "$@"
