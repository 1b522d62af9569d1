{{/* Refusals that a schema can't express, each with what to do. */}}
{{- define "signalbox.checks" -}}
{{- if gt (len .Release.Name) 40 }}
{{- fail "the release's name may have at most 40 characters, so that every object's name can begin with it" }}
{{- end }}
{{- if and .Values.redis.bundled.enabled .Values.redis.existingSecret }}
{{- fail "redis.existingSecret names a Redis of your own: set redis.bundled.enabled=false as well, or leave redis.existingSecret empty" }}
{{- end }}
{{- if not (or .Values.redis.bundled.enabled .Values.redis.existingSecret) }}
{{- fail "there is no Redis: set redis.bundled.enabled=true, or name a Secret with the key `url` in redis.existingSecret" }}
{{- end }}
{{- if and .Values.postgresql.bundled.enabled .Values.postgresql.existingSecret }}
{{- fail "postgresql.existingSecret names a PostgreSQL of your own: set postgresql.bundled.enabled=false as well, or leave postgresql.existingSecret empty" }}
{{- end }}
{{- if and (include "signalbox.sqlite" .) (gt (int .Values.usage.replicas) 1) }}
{{- fail "usage.replicas > 1 needs PostgreSQL, because SQLite is for one pod: set postgresql.existingSecret (or postgresql.bundled.enabled=true for a trial), or usage.replicas=1" }}
{{- end }}
{{- if and (eq .Values.tokenRefresher.store.kind "Volume") (gt (int .Values.tokenRefresher.replicas) 1) }}
{{- fail "tokenRefresher.replicas > 1 needs grants that pods can share: set tokenRefresher.store.kind=Secrets, or tokenRefresher.replicas=1" }}
{{- end }}
{{- if and (has "*" .Values.watchNamespaces) (gt (len .Values.watchNamespaces) 1) }}
{{- fail "watchNamespaces: \"*\" stands for all namespaces and goes alone" }}
{{- end }}
{{- if and (eq .Values.rooms.tls.mode "Existing") (not .Values.rooms.tls.existingSecret) }}
{{- fail "rooms.tls.mode=Existing needs rooms.tls.existingSecret" }}
{{- end }}
{{- if and (eq .Values.rooms.tls.mode "CertManager") (not .Values.rooms.tls.issuerRef.name) }}
{{- fail "rooms.tls.mode=CertManager needs rooms.tls.issuerRef.name" }}
{{- end }}
{{- with .Values.gateway.autoscaling }}
{{- if .enabled }}
{{- if gt (int .minReplicas) (int .maxReplicas) }}
{{- fail "gateway.autoscaling: minReplicas is more than maxReplicas" }}
{{- end }}
{{- if and (eq .kind "HPA") (not (or .targetCPUPercent .targetInFlight)) }}
{{- fail "gateway.autoscaling: set targetCPUPercent or targetInFlight" }}
{{- end }}
{{- if and (eq .kind "KEDA") (not .targetInFlight) }}
{{- fail "gateway.autoscaling: KEDA scales by requests in flight; set targetInFlight" }}
{{- end }}
{{- end }}
{{- end }}
{{- if lt (int .Values.gateway.terminationGracePeriodSeconds) (add (int .Values.gateway.preStopSeconds) 25 | int) }}
{{- fail "gateway.terminationGracePeriodSeconds must be at least 25 s more than gateway.preStopSeconds" }}
{{- end }}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) }}
{{- fail "ingress.enabled needs ingress.hosts" }}
{{- end }}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) }}
{{- fail "httpRoute.enabled needs httpRoute.parentRefs" }}
{{- end }}
{{- end -}}
