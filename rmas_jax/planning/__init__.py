"""What a program costs on chips that are not at hand: counts of compiled HLO, and chips' limits."""
