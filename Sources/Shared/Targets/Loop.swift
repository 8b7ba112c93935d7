extension TargetManifest {
    public static let loop = TargetManifest(
        name: "loop", number: 2, summary: "Serves a regular file or a block device",
        inputs: [
            TargetInput(.data, name: "file", letter: "f", hasTwin: true, help: "The file or block device behind it")
        ],
        options: [
            .offset,
            .size(otherwise: "up to the end of the file"),
            .blockSize(
                otherwise: "512; on a block device that of the device, on a file with a GPT of 4096-byte sectors 4K"),
            .buffered,
        ],
        modes: [.batchZeroCopy, .zeroCopy, .batch, .copy], submissions: .loop, survival: .inputs)
}

extension Submissions {
    @inlinable @inline(__always)
    public static var loop: Submissions { Submissions(perRequest: 1) }
}
