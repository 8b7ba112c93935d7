extension TargetManifest {
    public static let memory = TargetManifest(
        name: "memory", number: 4, summary: "Serves a disk in memory, whose content ends with the device",
        inputs: [
            TargetInput(.memory, name: "memory", hasTwin: true, help: "A memfd of the disk's size that ubd makes")
        ],
        options: [
            .size(initial: 256 << 20),
            .blockSize(initial: 512),
        ],
        modes: [.batchZeroCopy, .zeroCopy, .batch, .copy], submissions: .loop, survival: .inputs)
}
