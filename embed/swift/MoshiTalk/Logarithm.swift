import Foundation

func logarithm10(_ x: Float) -> Float { log10(x) }
