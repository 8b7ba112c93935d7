import Targets

// Encoding of a device's options in a launch message: their number, then for each its option number, the length of its
// value, and the value, an integer of 8 bytes or text. They are sorted by number.
extension DeviceOptions {
    func encode(to writer: inout ByteWriter) {
        writer.put(UInt16(entries.count))
        for entry in entries {
            writer.put(entry.number)
            switch entry.value {
            case .number(let number):
                writer.put(UInt16(8))
                writer.put(number)
            case .text(let text):
                writer.put(UInt16(text.utf8.count))
                for byte in text.utf8 { writer.put(byte) }
            }
        }
    }

    /// nil when an option is not the target's, is repeated or out of order, or has a value of the wrong type.
    init?(from reader: inout ByteReader, of target: TargetManifest) {
        self.init()
        let count = Int(reader.get(UInt16.self))
        guard count <= target.options.count else { return nil }
        var last: TargetOption.Number = 0
        for _ in 0..<count {
            let number: TargetOption.Number = reader.get()
            let length = Int(reader.get(UInt16.self))
            guard number > last, let option = target.option(number), length <= LaunchMessage.longest else { return nil }
            last = number
            if case .text = option.kind {
                let bytes: [UInt8] = (0..<length).map { _ in reader.get() }
                guard reader.intact, let text = String(validating: bytes, as: UTF8.self) else { return nil }
                self[number] = .text(text)
            } else {
                guard length == 8 else { return nil }
                self[number] = .number(reader.get())
            }
        }
        guard reader.intact else { return nil }
    }

    /// Decodes the options at the end of a message in `LaunchMessage.Layout.fixed`; 0 means not set.
    init(fixed reader: inout ByteReader, buffered: Bool) {
        self.init()
        let block: UInt32 = reader.get()
        if block != 0 { blockSize = block }
        offset = reader.get()
        let bytes: UInt64 = reader.get()
        if bytes != 0 { size = bytes }
        self.buffered = buffered
    }
}

extension TargetManifest {
    /// Whether the target has all these options and allows their values.
    func accepts(_ options: DeviceOptions) -> Bool {
        options.entries.allSatisfy { entry in option(entry.number)?.accepts(entry.value) == true }
    }
}
