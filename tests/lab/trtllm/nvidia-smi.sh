case "$*" in
"--query-gpu=name,compute_cap,memory.total,driver_version --format=csv,noheader")
  line="$TRTLLM_LAB_GPU, $TRTLLM_LAB_SM, 23034 MiB, 570.133.20" ;;
"--query-gpu=memory.used --format=csv,noheader,nounits")
  # The memory of the workers, whose weights lie in folders of this name.
  line=$(ps -ewwo rss,args | awk '/[l]lama_cpp.launch.*trtllm-lab-/ {s += $1} END {print int(s / 1024)}') ;;
*)
  echo "Field is not a valid field to query." >&2
  exit 2 ;;
esac
for _ in $(seq "$TRTLLM_LAB_GPUS"); do echo "$line"; done
