extension TargetManifest {
    public static let null = TargetManifest(
        name: "null", number: 1,
        summary: "Completes every request at once; reads return zeroes, writes are dropped",
        options: [
            // 250 GiB, as in ublksrv.
            .size(initial: 250 << 30),
            .blockSize(initial: 512),
        ],
        // In zero-copy mode each read would need zeros written to it separately.
        modes: [.batch, .copy], submissions: .null, survival: .nothing)
}

extension Submissions {
    @inlinable @inline(__always)
    public static var null: Submissions { Submissions(perRequest: 1) }
}
