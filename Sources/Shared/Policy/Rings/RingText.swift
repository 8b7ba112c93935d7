extension RingPolicy {
    /// The policy as text in its own grammar, with includes and modes resolved.
    public var text: String {
        func name(_ names: [String], _ number: Int) -> String { number < names.count ? names[number] : "\(number)" }
        func bits(_ flags: UInt8) -> [String] {
            (0..<8).filter { flags & 1 << $0 != 0 }.map { name(RingNames.flags, $0) }
        }
        var lines = operations.map { "op \(name(RingNames.operations, Int($0)))" }
        lines += registerOperations.map { "register \(name(RingNames.registerOperations, Int($0)))" }
        lines.append("flags required " + bits(requiredFlags).joined(separator: " "))
        if allowedFlags != 0 { lines.append("flags allowed " + bits(allowedFlags).joined(separator: " ")) }
        return lines.joined(separator: "\n") + "\n"
    }
}
