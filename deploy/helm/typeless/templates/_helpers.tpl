{{- define "typeless.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "typeless.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "typeless.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "typeless.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Labels that select all pods of a release, or with (list . "server") those of a component. */}}
{{- define "typeless.selector" -}}
app.kubernetes.io/name: {{ include "typeless.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "typeless.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "typeless.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "typeless.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "typeless.fullname" .) }}
{{- else }}
{{- .Values.serviceAccount.name | default "default" }}
{{- end }}
{{- end }}

{{/* Non-empty if pods share a database; else there is one pod with SQLite. */}}
{{- define "typeless.shared" -}}
{{- if .Values.secrets.database_url }}true{{ end }}
{{- end }}

{{/* drain_timeout_s in whole seconds, rounded up. */}}
{{- define "typeless.drain" -}}
{{- (dig "server" "drain_timeout_s" 30 .Values.settings) | float64 | ceil | int }}
{{- end }}

{{/* Refuses values that do not fit together. The schema checks each value by itself. */}}
{{- define "typeless.check" -}}
{{- $many := or .Values.worker.enabled .Values.server.autoscaling.enabled (gt (int .Values.server.replicas) 1) }}
{{- if and $many (not (include "typeless.shared" .)) }}
{{- fail "several pods need secrets.database_url: without it, jobs and keys are in one pod's SQLite files" }}
{{- end }}
{{- $stores := 0 }}
{{- range list .Values.storage.url .Values.storage.existingClaim .Values.secrets.storage_url }}{{ if . }}{{ $stores = add1 $stores }}{{ end }}{{ end }}
{{- if gt (int $stores) 1 }}
{{- fail "set one of storage.url, storage.existingClaim and secrets.storage_url" }}
{{- end }}
{{- if and (include "typeless.shared" .) (eq (int $stores) 0) }}
{{- fail "with secrets.database_url, set storage.url, storage.existingClaim or secrets.storage_url: the audio of jobs must outlive pods, too" }}
{{- end }}
{{- if and .Values.tls.verifyClients (not .Values.tls.existingSecret) }}
{{- fail "tls.verifyClients needs tls.existingSecret" }}
{{- end }}
{{- with .Values.server.autoscaling }}
{{- if and .enabled (not (or .streams .queueWaitMilliseconds .cpuPercent)) }}
{{- fail "server.autoscaling needs a target: streams, queueWaitMilliseconds or cpuPercent" }}
{{- end }}
{{- if gt (int .minReplicas) (int .maxReplicas) }}
{{- fail "server.autoscaling.minReplicas is more than maxReplicas" }}
{{- end }}
{{- end }}
{{- end }}

{{/* The pod of a component: (dict "root" . "component" "server" "values" .Values.server). */}}
{{- define "typeless.pod" -}}
{{- $root := .root }}
{{- $values := .values }}
{{- $isServer := eq .component "server" }}
{{- $secrets := $root.Values.secrets }}
{{- if not $isServer }}
{{- /* A worker takes no calls: it gets no keys of callers. */}}
{{- $secrets = omit $secrets "admin_keys" "api_keys" "redis_url" }}
{{- end }}
{{- with $root.Values }}
metadata:
  labels:
    {{- include "typeless.labels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ $.component }}
    {{- with $values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    checksum/settings: {{ include "typeless.toml" $root | sha256sum }}
    {{- with $values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  serviceAccountName: {{ include "typeless.serviceAccount" $root }}
  automountServiceAccountToken: false
  # A Service "typeless" would set TYPELESS_PORT, among others, to something else than a port.
  enableServiceLinks: false
  {{- if $isServer }}
  # The sleep before SIGTERM, the drain, and time to close.
  terminationGracePeriodSeconds: {{ add $values.preStopSeconds (include "typeless.drain" $root) 15 }}
  {{- else }}
  # A worker hands its jobs back at once.
  terminationGracePeriodSeconds: 30
  {{- end }}
  {{- with .imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  securityContext:
    {{- toYaml .podSecurityContext | nindent 4 }}
  {{- with $values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- if and .gpu.enabled .gpu.runtimeClassName }}
  runtimeClassName: {{ .gpu.runtimeClassName }}
  {{- end }}
  {{- with $values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $values.affinity }}
  affinity:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if or $values.tolerations .gpu.enabled }}
  tolerations:
    {{- with $values.tolerations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
    {{- if .gpu.enabled }}
    - key: {{ .gpu.resource }}
      operator: Exists
      effect: NoSchedule
    {{- end }}
  {{- end }}
  topologySpreadConstraints:
    {{- if $values.topologySpreadConstraints }}
    {{- toYaml $values.topologySpreadConstraints | nindent 4 }}
    {{- else }}
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "typeless.selector" $root | nindent 10 }}
          app.kubernetes.io/component: {{ $.component }}
    {{- end }}
  containers:
    - name: {{ $.component }}
      image: {{ printf "%s:%s" .image.repository (.image.tag | default $root.Chart.AppVersion) | quote }}
      imagePullPolicy: {{ .image.pullPolicy }}
      args: [{{ ternary "serve" "worker" $isServer }}]
      securityContext:
        {{- toYaml .securityContext | nindent 8 }}
      env:
        - { name: TYPELESS_CONFIG, value: /etc/typeless/typeless.toml }
        - { name: TYPELESS_METRICS_HOST, value: "0.0.0.0" }
        - { name: TYPELESS_METRICS_PORT, value: "9464" }
        - { name: TYPELESS_MODEL_DOWNLOAD, value: {{ .model.download | quote }} }
        {{- with .model.name }}
        - { name: TYPELESS_MODEL, value: {{ . | quote }} }
        {{- end }}
        {{- with .model.directories }}
        {{- $directories := list }}
        {{- range $name, $path := . }}{{ $directories = append $directories (printf "%s=%s" $name $path) }}{{ end }}
        - { name: TYPELESS_MODEL_DIRS, value: {{ join "," $directories | quote }} }
        {{- end }}
        {{- if $isServer }}
        - { name: TYPELESS_HOST, value: "0.0.0.0" }
        - { name: TYPELESS_PORT, value: "50051" }
        - { name: TYPELESS_MAX_CONCURRENT_JOBS, value: {{ ternary 0 $values.jobs .worker.enabled | int | quote }} }
        {{- if .tls.existingSecret }}
        - { name: TYPELESS_TLS_CERT_FILE, value: /run/secrets/tls/tls.crt }
        - { name: TYPELESS_TLS_KEY_FILE, value: /run/secrets/tls/tls.key }
        {{- if .tls.verifyClients }}
        - { name: TYPELESS_TLS_CLIENT_CA_FILE, value: /run/secrets/tls/ca.crt }
        {{- end }}
        {{- end }}
        {{- else }}
        - { name: TYPELESS_MAX_CONCURRENT_JOBS, value: {{ $values.jobs | int | quote }} }
        {{- end }}
        {{- if .storage.existingClaim }}
        - { name: TYPELESS_STORAGE_URL, value: /srv/typeless/storage }
        {{- else if .storage.url }}
        - { name: TYPELESS_STORAGE_URL, value: {{ .storage.url | quote }} }
        {{- end }}
        {{- range $setting, $_ := $secrets }}
        - { name: {{ printf "TYPELESS_%s_FILE" (upper $setting) }}, value: {{ printf "/run/secrets/typeless/%s" $setting }} }
        {{- end }}
        {{- with .extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- with .extraEnvFrom }}
      envFrom:
        {{- toYaml . | nindent 8 }}
      {{- end }}
      ports:
        {{- if $isServer }}
        - { name: grpc, containerPort: 50051 }
        {{- end }}
        - { name: metrics, containerPort: 9464 }
      {{- if $isServer }}
      {{- /* Without a service, the health of the server as a whole: it can transcribe. */}}
      startupProbe:
        {{- include "typeless.probe" $root | nindent 8 }}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: {{ div (add $values.startupSeconds 4) 5 }}
      readinessProbe:
        {{- include "typeless.probe" $root | nindent 8 }}
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: 2
      # NOT_SERVING for so long is an engine that is stuck (engine_stall_s): only a restart helps.
      livenessProbe:
        {{- include "typeless.probe" $root | nindent 8 }}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      lifecycle:
        preStop:
          sleep: { seconds: {{ $values.preStopSeconds }} }
      {{- else }}
      # A worker answers once its model is loaded.
      startupProbe:
        httpGet: { path: /metrics, port: metrics }
        periodSeconds: 5
        timeoutSeconds: 5
        failureThreshold: {{ div (add $root.Values.server.startupSeconds 4) 5 }}
      livenessProbe:
        httpGet: { path: /metrics, port: metrics }
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      {{- end }}
      resources:
        {{- $resources := deepCopy $values.resources }}
        {{- if .gpu.enabled }}
        {{- $limits := set (deepCopy (default dict $resources.limits)) .gpu.resource (int .gpu.count) }}
        {{- $resources = set $resources "limits" $limits }}
        {{- end }}
        {{- toYaml $resources | nindent 8 }}
      volumeMounts:
        - { name: settings, mountPath: /etc/typeless, readOnly: true }
        - { name: data, mountPath: /var/lib/typeless }
        - { name: tmp, mountPath: /tmp }
        {{- if .model.existingClaim }}
        - { name: models, mountPath: /var/lib/typeless/models }
        {{- end }}
        {{- if .storage.existingClaim }}
        - { name: storage, mountPath: /srv/typeless/storage }
        {{- end }}
        {{- if $secrets }}
        - { name: secrets, mountPath: /run/secrets/typeless, readOnly: true }
        {{- end }}
        {{- if and $isServer .tls.existingSecret }}
        - { name: tls, mountPath: /run/secrets/tls, readOnly: true }
        {{- end }}
        {{- with .extraVolumeMounts }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
  volumes:
    - name: settings
      configMap: { name: {{ include "typeless.fullname" $root }} }
    - name: data
      {{- if and .persistence.enabled (not (include "typeless.shared" $root)) }}
      persistentVolumeClaim: { claimName: {{ .persistence.existingClaim | default (include "typeless.fullname" $root) }} }
      {{- else }}
      emptyDir: {}
      {{- end }}
    - name: tmp
      emptyDir: { sizeLimit: {{ .tmpSize }} }
    {{- with .model.existingClaim }}
    - name: models
      persistentVolumeClaim: { claimName: {{ . }} }
    {{- end }}
    {{- with .storage.existingClaim }}
    - name: storage
      persistentVolumeClaim: { claimName: {{ . }} }
    {{- end }}
    {{- if $secrets }}
    - name: secrets
      projected:
        defaultMode: 0440
        sources:
          {{- range $setting, $from := $secrets }}
          - secret:
              name: {{ $from.name }}
              items: [{ key: {{ $from.key | quote }}, path: {{ $setting }} }]
          {{- end }}
    {{- end }}
    {{- if and $isServer .tls.existingSecret }}
    - name: tls
      secret: { secretName: {{ .tls.existingSecret }}, defaultMode: 0440 }
    {{- end }}
    {{- with .extraVolumes }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end }}
{{- end }}

{{/* The probe of a pod: gRPC, or a command that reads the metrics if TLS is on, because the kubelet cannot use TLS. */}}
{{- define "typeless.probe" -}}
{{- if .Values.tls.existingSecret -}}
exec:
  command:
    - python3
    - -c
    - |
      import sys, urllib.request
      lines = urllib.request.urlopen("http://127.0.0.1:9464/metrics", timeout=4).read().decode().splitlines()
      sys.exit('typeless_serving{service=""} 1.0' not in lines)
{{- else -}}
grpc: { port: 50051 }
{{- end }}
{{- end }}

{{- define "typeless.toml" -}}
{{- toToml .Values.settings }}
{{- end }}
