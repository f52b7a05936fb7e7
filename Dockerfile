# The agent's image by a container engine; `cargo xtask image` makes the same without one.
FROM docker.io/library/rust:1.95-bookworm AS build
WORKDIR /src
COPY . .
RUN cargo xtask build --static && cp target/release/spanprof-static /spanprof

FROM scratch
COPY --from=build /spanprof /spanprof
ENTRYPOINT ["/spanprof"]
